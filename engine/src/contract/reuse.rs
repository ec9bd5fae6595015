//! What stages keep of former sequences, and who may begin with it.

use super::{Contract, FIRST, PLENTY, Run, Violation, hold, same, seeded};
use crate::prefix_cache::BLOCK_TOKENS;
use crate::sampler::SamplingParams;
use crate::stage::SegmentError;

const BLOCK: usize = BLOCK_TOKENS as usize;

impl Contract<'_, '_> {
    pub(super) fn reused(&mut self) -> Result<(), Violation> {
        // Two whole blocks and some.
        let prompt = self.prompt(2 * BLOCK + 9);
        for params in [SamplingParams::greedy(), seeded()] {
            let expected = self.whole()?.generate(FIRST, &prompt, &params, prompt.len())?;
            for chunk in [1, 50, prompt.len()] {
                self.begins_alike(&prompt, &params, chunk, &expected)?;
            }
        }
        self.nothing_kept_unasked(&prompt)
    }

    fn begins_alike(
        &mut self,
        prompt: &[u32],
        params: &SamplingParams,
        chunk: usize,
        expected: &[u32],
    ) -> Result<(), Violation> {
        let mut pipeline = self.halves()?;
        pipeline.stages.iter_mut().for_each(|stage| stage.set_kv_budget(PLENTY));
        let first = pipeline.generate(FIRST, prompt, params, chunk)?;
        same("with a cache for prefixes", expected, &first)?;
        let forked = [prompt.get(..BLOCK + 5).unwrap_or_default(), &[1, 0, 1, 0]].concat();
        for (tokens, left) in [
            (prompt, 2 * BLOCK),
            (prompt.get(..2 * BLOCK).unwrap_or_default(), 2 * BLOCK),
            (prompt.get(..2 * BLOCK - 1).unwrap_or_default(), BLOCK),
            (forked.as_slice(), BLOCK),
            (prompt.get(1..).unwrap_or_default(), 0),
        ] {
            for stage in &pipeline.stages {
                for layers in stage.held().runs() {
                    let reusable = stage.reusable(*layers, tokens) as usize;
                    hold(reusable == left, || format!("{reusable} of {left} positions are left"))?;
                }
            }
        }
        // While the first runs, and after it is gone.
        for round in 0..2 {
            for reused in [BLOCK, 2 * BLOCK] {
                let mut run = Run::new(2, prompt, params);
                (run.reused, run.computed) = (reused, reused);
                pipeline.finish(&mut run, chunk)?;
                let when = format!("round {round}: {reused} positions reused");
                same(&when, expected, &run.generated)?;
                pipeline.stages.iter_mut().for_each(|stage| stage.release(run.sequence));
            }
            pipeline.stages.iter_mut().for_each(|stage| stage.release(FIRST));
        }
        // Room for nothing: what was kept goes, and whoever counts on it is told.
        pipeline.stages.iter_mut().for_each(|stage| stage.set_kv_budget(1));
        let left: u64 = pipeline.stages.iter().map(|stage| stage.memory().prefixes).sum();
        hold(left == 0, || format!("{left} bytes are kept with room for one"))?;
        let mut late = Run::new(3, prompt, params);
        (late.reused, late.computed) = (BLOCK, BLOCK);
        let gone = SegmentError::PrefixGone { have: 0, got: BLOCK_TOKENS };
        pipeline.refuses(late.next(chunk), |error| *error == gone)?;
        let again = pipeline.generate(FIRST, prompt, params, chunk)?;
        same("after what was kept is gone", expected, &again)
    }

    fn nothing_kept_unasked(&mut self, prompt: &[u32]) -> Result<(), Violation> {
        let params = SamplingParams::greedy();
        let mut pipeline = self.halves()?;
        pipeline.generate(FIRST, prompt, &params, prompt.len())?;
        let kept = pipeline.stages.iter().any(|stage| stage.memory().prefixes > 0);
        hold(!kept, || "prefixes are kept without a budget".to_owned())
    }
}
