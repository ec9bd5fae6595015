//! The tensors that each part of a model consists of.

use super::{
    Architecture, Attention, Beside, Experts, FeedForward, Gated, GroupedQuery, Latent,
    LatentQuery, Layer, LayerInput, LayerInputs, Linear, Norm, Stack, Stored,
};

/// A part of a model that a stage holds as a whole.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Part {
    /// The token embedding.
    Embedding,
    /// One layer.
    Layer(u32),
    /// The last norm and, if it is not the embedding, the head.
    Head,
}

/// Something that has to be in the model's files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Need<'a> {
    /// `<module>.weight` of that shape, or the packed numbers, scales and biases that stand for it;
    /// and the bias, if there is to be one.
    Matrix {
        module: &'a str,
        shape: Vec<usize>,
        has_bias: bool,
        stored: &'a Stored,
        /// Whether hidden states take its type. What is computed at 32 bits in any model may be kept so.
        decides_type: bool,
    },
    /// A tensor of floats.
    Floats {
        name: String,
        shape: Vec<usize>,
        /// Whether hidden states take its type. Corrections of the router are kept at 32 bits
        /// whatever the model is.
        decides_type: bool,
    },
}

impl Architecture {
    /// What `part` consists of.
    pub(crate) fn needs(&self, part: Part) -> Vec<Need<'_>> {
        let mut needs = Needs::default();
        match part {
            Part::Embedding => {
                let shape = vec![self.vocab_size as usize, self.hidden_size as usize];
                let module = &self.embedding.module;
                needs.0.push(Need::Matrix {
                    module,
                    shape,
                    has_bias: false,
                    stored: &Stored::Own,
                    decides_type: true,
                });
                if let Some(inputs) = &self.inputs {
                    let LayerInputs { table, vocab, projection, norm, .. } = &**inputs;
                    needs.0.push(Need::Matrix {
                        module: &table.module,
                        shape: vec![*vocab as usize, projection.rows as usize],
                        has_bias: false,
                        stored: &Stored::Own,
                        decides_type: true,
                    });
                    needs.linear(projection);
                    needs.norm(norm);
                }
            }
            Part::Layer(layer) => {
                self.layers.get(layer as usize).into_iter().for_each(|layer| needs.layer(layer));
            }
            Part::Head => {
                needs.norm(&self.norm);
                self.head.iter().for_each(|head| needs.linear(head));
            }
        }
        needs.0
    }
}

#[derive(Default)]
struct Needs<'a>(Vec<Need<'a>>);

impl<'a> Needs<'a> {
    fn layer(&mut self, layer: &'a Layer) {
        layer.before_attention.iter().for_each(|norm| self.norm(norm));
        match &layer.attention {
            Attention::Grouped(grouped) => self.grouped(grouped),
            Attention::Latent(latent) => self.latent(latent),
        }
        layer.after_attention.iter().for_each(|norm| self.norm(norm));
        layer.before_feed_forward.iter().for_each(|norm| self.norm(norm));
        match &layer.feed_forward {
            FeedForward::Gated(gated) => self.gated(gated),
            FeedForward::Experts(experts) => self.experts(experts),
            FeedForward::Beside(both) => self.beside(both),
        }
        layer.after_feed_forward.iter().for_each(|norm| self.norm(norm));
        if let Some(LayerInput { gate, projection, norm }) = &layer.input {
            self.linear(gate);
            self.linear(projection);
            self.norm(norm);
        }
        layer.scale.iter().for_each(|name| self.floats(name, &[1], false));
    }

    fn grouped(&mut self, attention: &'a GroupedQuery) {
        self.linear(&attention.query);
        if attention.kv_of.is_none() {
            self.linear(&attention.key);
            attention.value.iter().for_each(|linear| self.linear(linear));
            attention.key_norm.iter().for_each(|norm| self.norm(norm));
        }
        self.linear(&attention.output);
        attention.gate.iter().for_each(|linear| self.linear(linear));
        attention.query_norm.iter().for_each(|norm| self.norm(norm));
        if let Some(sinks) = &attention.sinks {
            self.floats(&sinks.name, &[sinks.of], true);
        }
    }

    fn latent(&mut self, attention: &'a Latent) {
        match &attention.query {
            LatentQuery::Direct(linear) => self.linear(linear),
            LatentQuery::Compressed { down, norm, up } => {
                self.linear(down);
                self.norm(norm);
                self.linear(up);
            }
        }
        self.linear(&attention.compress);
        self.norm(&attention.compress_norm);
        self.stack(&attention.key);
        self.stack(&attention.value);
        self.linear(&attention.output);
        if let Some(indexer) = &attention.indexer {
            self.linear(&indexer.query);
            self.linear(&indexer.key);
            // Kept at 32 bits in some files, as weights are computed.
            self.matrix(&indexer.weights, &[], false);
            for name in ["weight", "bias"] {
                let norm = &indexer.key_norm;
                self.floats(&format!("{}.{name}", norm.module), &[norm.width], false);
            }
        }
    }

    fn gated(&mut self, gated: &'a Gated) {
        for linear in [&gated.gate, &gated.up, &gated.down] {
            self.linear(linear);
        }
    }

    fn experts(&mut self, experts: &'a Experts) {
        self.matrix(&experts.router, &[], !experts.routes_wide);
        experts
            .routing
            .of_each()
            .into_iter()
            .for_each(|name| self.floats(name, &[experts.router.rows], false));
        for stack in [&experts.gate, &experts.up, &experts.down] {
            self.stack(stack);
        }
        experts.shared.iter().for_each(|shared| self.gated(shared));
    }

    fn beside(&mut self, both: &'a Beside) {
        self.gated(&both.dense);
        self.floats(&both.before_router.name, &[both.before_router.width], false);
        self.experts(&both.experts);
        for norm in [&both.after_dense, &both.before_experts, &both.after_experts] {
            self.norm(norm);
        }
    }

    fn norm(&mut self, norm: &'a Norm) {
        self.floats(&format!("{}.weight", norm.module), &[norm.width], true);
    }

    fn linear(&mut self, linear: &'a Linear) {
        self.matrix(linear, &[], true);
    }

    fn stack(&mut self, stack: &'a Stack) {
        self.matrix(&stack.each, &[stack.count], true);
    }

    fn matrix(&mut self, linear: &'a Linear, before: &[u32], decides_type: bool) {
        let own = [linear.rows, linear.columns];
        self.0.push(Need::Matrix {
            module: &linear.module,
            shape: before.iter().chain(&own).map(|dim| *dim as usize).collect(),
            has_bias: linear.has_bias,
            stored: &linear.stored,
            decides_type,
        });
    }

    fn floats(&mut self, name: &str, shape: &[u32], decides_type: bool) {
        let shape = shape.iter().map(|dim| *dim as usize).collect();
        self.0.push(Need::Floats { name: name.to_owned(), shape, decides_type });
    }
}
