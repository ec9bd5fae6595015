//! Chat templates: programs from outside, which have to end and to stay small.

use std::sync::LazyLock;

use planaria_engine::chat_template::{Chat, ChatMessage, ChatTemplate};
use planaria_engine::model_dir::ModelDir;

use crate::decisions::Decisions;
use crate::folder::Folder;

static MODEL: LazyLock<(Folder, ModelDir)> = LazyLock::new(|| {
    let folder = Folder::new();
    let config = br#"{"model_type": "planaria_fake", "num_hidden_layers": 1, "hidden_size": 1,
        "vocab_size": 1, "max_position_embeddings": 1}"#;
    folder.write("config.json", config);
    folder.write("tokenizer_config.json", br#"{"bos_token": "<s>", "eos_token": "</s>"}"#);
    let model = ModelDir::open(folder.path()).unwrap();
    (folder, model)
});

/// Pieces of templates. Strung together most are no template; those that are grow lists within
/// lists, texts within texts and calls within calls.
const PIECES: &[&str] = &[
    "{% set ns = namespace(a=[], s='x', n=0) %}",
    "{% for i in range(9000) %}",
    "{% for i in range(60) %}",
    "{% endfor %}",
    "{% for m in messages %}",
    "{% set ns.a = [ns.a] %}",
    "{% set ns.a = [ns.a, ns.a] %}",
    "{% set ns.a = {'a': ns.a} %}",
    "{% set ns.a = ns %}",
    "{% set ns.s = ns.s ~ ns.s %}",
    "{% set ns.s = ns.s.replace('x', ns.s) %}",
    "{% set ns.s = ns.s | replace('x', 'xx') %}",
    "{% set ns.s = ns.s * 1000 %}",
    "{% set ns.s = 'x' * 1000000 %}",
    "{% set ns.a = ns.a * 1000 %}",
    "{% set ns.a = [ns.s] * 1000 %}",
    "{{ ns.a }}",
    "{{ ns.s }}",
    "{{ ns }}",
    "{{ ns.a | tojson }}",
    "{{ ns.a | tojson(indent=9) }}",
    "{{ ns.a | string | length }}",
    "{{ ns.s.join(ns.a) }}",
    "{{ ns.a | join(ns.s) }}",
    "{{ '{0}{0}'.format(ns.s) }}",
    "{{ '{:>9999}'.format(ns.s) }}",
    "{{ '%9999s' | format(ns.s) }}",
    "{{ ns.s.split('x') | length }}",
    "{{ ns.s.split('') }}",
    "{{ ns.s.strip(ns.s) }}",
    "{{ ns.s.count('x') }}",
    "{{ ns.s.startswith(ns.a) }}",
    "{{ ns.a.count(ns.a) }}",
    "{{ ns.a == ns.a }}",
    "{{ ns.a in ns.a }}",
    "{{ ns.a < [ns.a] }}",
    "{{ ns.a ~ ns.a }}",
    "{{ ns.a | unique | list }}",
    "{{ ns.a | sort }}",
    "{{ ns.a | reverse }}",
    "{{ ns.a | first }}",
    "{{ ns.s[::2] }}",
    "{{ ns.s | indent(999) }}",
    "{{ ns.s | title }}",
    "{{ ns.a | batch(3) | list }}",
    "{{ ns.a | slice(3) | list }}",
    "{{ ns.a | map('upper') }}",
    "{{ ns.a | pprint }}",
    "{{ ns.a | groupby('a') }}",
    "{{ ns.s | urlencode }}",
    "{% macro f(x) %}",
    "{% macro g(x, y=1) %}",
    "{% endmacro %}",
    "{{ f(x) }}",
    "{{ f([x, x]) }}",
    "{{ f(ns.a) }}",
    "{{ g([[x]], y=[y]) }}",
    "{% call f(1) %}",
    "{% endcall %}",
    "{{ caller() }}",
    "{% if ns.n < 50 %}",
    "{% else %}",
    "{% endif %}",
    "{% set ns.n = ns.n + 1 %}",
    "{% set x = [x, x] %}",
    "{% set x = messages %}",
    "{% set x %}",
    "{% endset %}",
    "{{ x }}",
    "{% set x, y = messages %}",
    "{% break %}",
    "{% continue %}",
    "{{ raise_exception(ns.s) }}",
    "{{ strftime_now(ns.s) }}",
    "{{ messages[0].content }}",
    "{{ messages[-1]['role'] | trim }}",
    "{% for m in messages recursive %}",
    "{{ loop(messages) }}",
    "{{ loop.index }}",
    "{{ 2 ** 99 }}",
    "{% generation %}",
    "{% endgeneration %}",
    "{% raw %}",
    "{% endraw %}",
    "{# ",
    " #}",
    "\n",
    "  ",
    "{%- if add_generation_prompt -%}",
    "{% with a = [ns.a] %}",
    "{% endwith %}",
    "{{ dict(a=1) }}",
    "{% filter upper %}",
    "{% endfilter %}",
    "{{ ns.a.items() }}",
    "{{ x.get('a') }}",
    "\"",
    "'",
];

pub(crate) fn run(input: &[u8]) {
    let mut decisions = Decisions::new(input);
    let source = if decisions.rarely(4) {
        String::from_utf8_lossy(decisions.rest()).into_owned()
    } else {
        let mut source = String::new();
        while decisions.are_left() {
            source.push_str(decisions.word(PIECES));
        }
        source
    };
    let (folder, model) = &*MODEL;
    folder.write("chat_template.jinja", source.as_bytes());
    let template = ChatTemplate::open(model).unwrap();
    let message = ChatMessage::new;
    let messages = vec![message("system", "Be \u{e9} \"short\"."), message("user", " x <s> ")];
    if let Err(error) = template.render(&Chat::of(messages), 0) {
        let message = error.to_string();
        assert!(message.len() < 8000, "a message of {} bytes", message.len());
    }
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let count = u8::try_from(PIECES.len()).unwrap();
    // Each piece behind the namespace and within its loop.
    let mut seeds: Vec<Vec<u8>> =
        (0..count).map(|piece| vec![0, 0, 1, 4, 9, 2, piece, piece]).collect();
    let usual = "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m.content | trim }}\
        {% if loop.last %}{{ eos_token }}{% endif %}{% endfor %}";
    seeds.push([&[1], usual.as_bytes()].concat());
    seeds
}
