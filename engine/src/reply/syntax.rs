//! How the formats are marked: what opens and ends a region, and where an end does not count.

use super::dialect::{Dialect, ReasoningFormat, ToolFormat};
use super::lexer::Marker;

/// Where a call begins, and what tells that it is complete.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) open: Marker,
    pub(super) end: End,
}

/// What ends a region of calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// A marker.
    Marker(Marker),
    /// The last bracket of its JSON.
    Json,
    /// The end of the reply.
    Reply,
}

/// Where an end that is written does not count.
#[derive(Debug, Clone, Copy)]
pub(super) enum Shield {
    /// Within strings of JSON.
    Json,
    /// Within values, from one marker to the next. One that follows `last` counts all the same.
    Value { open: Marker, close: Marker, last: Option<Marker> },
    /// Between two of this marker.
    Quote(Marker),
    /// Nowhere.
    Nothing,
}

/// How regions of calls look.
#[derive(Debug)]
pub(super) struct ToolSyntax {
    pub(super) bounds: &'static [Bounds],
    /// Markers that count within regions only.
    pub(super) inner: &'static [Marker],
    pub(super) shield: Shield,
    /// The character that a reply begins with which is a call as a whole.
    pub(super) whole: Option<char>,
    /// Whether a call may end reasoning that was not closed.
    pub(super) ends_reasoning: bool,
}

/// How reasoning looks.
#[derive(Debug)]
pub(super) struct ReasoningSyntax {
    pub(super) open: Marker,
    pub(super) close: Marker,
    /// What follows `open` and belongs to it.
    pub(super) lead: &'static str,
}

/// Markers of gpt-oss.
pub(super) const HARMONY: &[Marker] = &[
    "<|start|>",
    "<|channel|>",
    "<|constrain|>",
    "<|message|>",
    "<|end|>",
    "<|call|>",
    "<|return|>",
];

/// Tokens that are parts of markers. They are special, but read as text.
pub(super) const PARTS: &[Marker] = &["｜DSML｜"];

impl ToolFormat {
    /// How its regions look; of harmony, which has none, an empty one.
    pub(super) const fn syntax(self) -> &'static ToolSyntax {
        match self {
            Self::Hermes => &HERMES,
            Self::QwenXml => &QWEN_XML,
            Self::Glm => &GLM,
            Self::MinimaxM2 => &MINIMAX_M2,
            Self::DeepseekV3 | Self::DeepseekV31 => &DEEPSEEK,
            Self::DeepseekDsml => &DSML,
            Self::KimiK2 => &KIMI_K2,
            Self::MistralJson => &MISTRAL_JSON,
            Self::MistralArgs => &MISTRAL_ARGS,
            Self::LlamaJson => &LLAMA_JSON,
            Self::Pythonic => &PYTHONIC,
            Self::Gemma4 => &GEMMA4,
            Self::Step3 => &STEP3,
            Self::Harmony => &PLAIN,
        }
    }
}

impl ReasoningFormat {
    /// The markers around reasoning; `None` where it is a message of its own.
    #[must_use]
    pub fn markers(self) -> Option<(&'static str, &'static str)> {
        self.syntax().map(|syntax| (syntax.open, syntax.close))
    }

    /// How it looks; harmony's is part of its channels.
    pub(super) const fn syntax(self) -> Option<ReasoningSyntax> {
        let (open, close, lead) = match self {
            Self::ThinkTags => ("<think>", "</think>", "\n"),
            Self::MistralThink => ("[THINK]", "[/THINK]", "\n"),
            Self::Seed => ("<seed:think>", "</seed:think>", "\n"),
            Self::Kimi => ("◁think▷", "◁/think▷", "\n"),
            Self::Gemma4 => ("<|channel>", "<channel|>", "thought\n"),
            Self::Harmony => return None,
        };
        Some(ReasoningSyntax { open, close, lead })
    }
}

impl Dialect {
    /// Whether replies are read in gpt-oss' channels.
    #[must_use]
    pub fn is_harmony(self, calls: bool) -> bool {
        self.reasoning == Some(ReasoningFormat::Harmony)
            || calls && self.tools == Some(ToolFormat::Harmony)
    }

    /// All markers that count, if calls do.
    pub(super) fn markers(self, calls: bool) -> Vec<Marker> {
        if self.is_harmony(calls) {
            return HARMONY.to_vec();
        }
        let reasoning = self.reasoning.and_then(ReasoningFormat::syntax);
        let mut markers: Vec<Marker> =
            reasoning.map_or_else(Vec::new, |syntax| vec![syntax.open, syntax.close]);
        if let Some(tools) = self.tools.filter(|_| calls) {
            let syntax = tools.syntax();
            for bounds in syntax.bounds {
                markers.push(bounds.open);
                if let End::Marker(close) = bounds.end {
                    markers.push(close);
                }
            }
            markers.extend(syntax.inner);
        }
        markers
    }
}

const fn between(open: Marker, close: Marker) -> Bounds {
    Bounds { open, end: End::Marker(close) }
}

const fn until(open: Marker, end: End) -> Bounds {
    Bounds { open, end }
}

const PLAIN: ToolSyntax = ToolSyntax {
    bounds: &[],
    inner: &[],
    shield: Shield::Nothing,
    whole: None,
    ends_reasoning: false,
};

const HERMES: ToolSyntax =
    ToolSyntax { bounds: &[between("<tool_call>", "</tool_call>")], shield: Shield::Json, ..PLAIN };

const QWEN_XML: ToolSyntax = ToolSyntax {
    bounds: &[
        between("<tool_call>", "</tool_call>"),
        between("<seed:tool_call>", "</seed:tool_call>"),
        // Qwen3-Coder often leaves out the outer opening.
        between("<function=", "</function>"),
    ],
    inner: &["<parameter=", "</parameter>"],
    shield: Shield::Value { open: "<parameter=", close: "</parameter>", last: Some("</function>") },
    ..PLAIN
};

const GLM: ToolSyntax = ToolSyntax {
    bounds: &[between("<tool_call>", "</tool_call>")],
    inner: &["<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"],
    shield: Shield::Value { open: "<arg_value>", close: "</arg_value>", last: None },
    ..PLAIN
};

const MINIMAX_M2: ToolSyntax = ToolSyntax {
    bounds: &[between("<minimax:tool_call>", "</minimax:tool_call>")],
    inner: &["<invoke name=", "</invoke>", "<parameter name=", "</parameter>"],
    shield: Shield::Value {
        open: "<parameter name=",
        close: "</parameter>",
        last: Some("</invoke>"),
    },
    ..PLAIN
};

const DEEPSEEK: ToolSyntax = ToolSyntax {
    bounds: &[between("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>")],
    inner: &["<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"],
    shield: Shield::Json,
    ..PLAIN
};

const DSML: ToolSyntax = ToolSyntax {
    bounds: &[
        between("<｜DSML｜function_calls>", "</｜DSML｜function_calls>"),
        between("<｜DSML｜tool_calls>", "</｜DSML｜tool_calls>"),
    ],
    inner: &[
        "<｜DSML｜invoke name=",
        "</｜DSML｜invoke>",
        "<｜DSML｜parameter name=",
        "</｜DSML｜parameter>",
    ],
    shield: Shield::Value {
        open: "<｜DSML｜parameter name=",
        close: "</｜DSML｜parameter>",
        last: Some("</｜DSML｜invoke>"),
    },
    ..PLAIN
};

const KIMI_K2: ToolSyntax = ToolSyntax {
    bounds: &[between("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>")],
    inner: &["<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"],
    shield: Shield::Json,
    ends_reasoning: true,
    ..PLAIN
};

const MISTRAL_JSON: ToolSyntax =
    ToolSyntax { bounds: &[until("[TOOL_CALLS]", End::Json)], shield: Shield::Json, ..PLAIN };

const MISTRAL_ARGS: ToolSyntax = ToolSyntax {
    bounds: &[until("[TOOL_CALLS]", End::Json)],
    inner: &["[CALL_ID]", "[ARGS]"],
    shield: Shield::Json,
    ..PLAIN
};

const LLAMA_JSON: ToolSyntax = ToolSyntax {
    bounds: &[until("<|python_tag|>", End::Reply), between("<|python_start|>", "<|python_end|>")],
    shield: Shield::Json,
    whole: Some('{'),
    ..PLAIN
};

const PYTHONIC: ToolSyntax = ToolSyntax {
    bounds: &[between("<|python_start|>", "<|python_end|>")],
    whole: Some('['),
    ..PLAIN
};

const GEMMA4: ToolSyntax = ToolSyntax {
    bounds: &[between("<|tool_call>", "<tool_call|>")],
    inner: &["<|\"|>"],
    shield: Shield::Quote("<|\"|>"),
    ..PLAIN
};

const STEP3: ToolSyntax = ToolSyntax {
    bounds: &[between("<｜tool_calls_begin｜>", "<｜tool_calls_end｜>")],
    inner: &[
        "<｜tool_call_begin｜>",
        "<｜tool_sep｜>",
        "<｜tool_call_end｜>",
        "<steptml:invoke name=",
        "</steptml:invoke>",
        "<steptml:parameter name=",
        "</steptml:parameter>",
    ],
    shield: Shield::Value {
        open: "<steptml:parameter name=",
        close: "</steptml:parameter>",
        last: Some("</steptml:invoke>"),
    },
    ..PLAIN
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_marker_is_the_beginning_of_another() {
        for tools in ToolFormat::all() {
            for reasoning in ReasoningFormat::all() {
                let dialect = Dialect { reasoning: Some(reasoning), tools: Some(tools) };
                let markers = dialect.markers(true);
                for (at, marker) in markers.iter().enumerate() {
                    let others = markers.iter().enumerate().filter(|(other, _)| *other != at);
                    let begins = others.map(|(_, other)| other).find(|o| o.starts_with(marker));
                    assert_eq!(begins, None, "{marker}");
                }
            }
        }
    }
}
