//! Tokenizers, detokenizers and chat templates of models as they ship.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fs;
use std::sync::Arc;

use planaria_engine::chat_template::{Chat, ChatError, ChatMessage, ChatTemplate};
use planaria_engine::detokenizer::Detokenizer;
use planaria_engine::model_dir::ModelDir;
use planaria_engine::tokenizer::Tokenizer;
use proptest::prelude::*;
use serde_json::{Map, Value, json};
use tempfile::TempDir;

/// A model's folder with these files beside its `config.json`.
fn model(files: &[(&str, Value)]) -> (TempDir, ModelDir) {
    let folder = TempDir::new().unwrap();
    let config = json!({
        "model_type": "planaria_fake", "num_hidden_layers": 2, "hidden_size": 4,
        "vocab_size": 400, "max_position_embeddings": 64, "eos_token_id": 258,
    });
    for (name, content) in files.iter().chain(&[("config.json", config)]) {
        let bytes = match content {
            Value::String(text) => text.clone().into_bytes(),
            json => serde_json::to_vec(json).unwrap(),
        };
        fs::write(folder.path().join(name), bytes).unwrap();
    }
    let model = ModelDir::open(folder.path()).unwrap();
    (folder, model)
}

/// How GPT-2 writes a byte.
fn byte_char(byte: u8) -> char {
    let prints = |byte: u8| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    if prints(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|other| !prints(*other)).count();
    char::from_u32(0x100 + u32::try_from(before).unwrap()).unwrap()
}

/// Byte-level BPE: 256 bytes, `he` as 256, and special tokens from 257 on, the first of which the
/// post-processor puts before every text.
fn byte_level() -> Value {
    let mut vocab: Map<String, Value> =
        (0..=u8::MAX).map(|byte| (byte_char(byte).to_string(), json!(byte))).collect();
    vocab.insert("he".to_owned(), json!(256));
    let special = |id: u32, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false,
               "rstrip": false, "normalized": false, "special": true})
    };
    json!({
        "version": "1.0", "normalizer": null,
        "truncation": {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0},
        "padding": {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": null,
                    "pad_id": 0, "pad_type_id": 0, "pad_token": "!"},
        "added_tokens": [special(257, "<s>"), special(258, "</s>"), special(259, "<|user|>")],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [257], "tokens": ["<s>"]}},
        },
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                  "ignore_merges": false, "vocab": vocab, "merges": ["h e"]},
    })
}

/// As SentencePiece models are converted: spaces as `▁`, unknown characters as bytes, the first
/// space of a text dropped.
fn sentence_piece() -> Value {
    let mut vocab = Map::new();
    for token in ["<unk>", "<s>", "</s>"] {
        vocab.insert(token.to_owned(), json!(vocab.len()));
    }
    for byte in 0..=u8::MAX {
        vocab.insert(format!("<0x{byte:02X}>"), json!(vocab.len()));
    }
    for token in ["▁", "a", "b", "é", "▁a"] {
        vocab.insert(token.to_owned(), json!(vocab.len()));
    }
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [
            {"id": 1, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false,
             "normalized": false, "special": true}],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": null, "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true,
                  "ignore_merges": false, "vocab": vocab, "merges": ["▁ a"]},
    })
}

fn tokenizer_with(tokenizer: Value, settings: Value) -> Arc<Tokenizer> {
    let files = [("tokenizer.json", tokenizer), ("tokenizer_config.json", settings)];
    let (_folder, model) = model(&files);
    Arc::new(Tokenizer::open(&model).unwrap())
}

#[test]
fn a_plain_prompt_begins_as_the_model_wants_it() {
    let encode = |settings: Value, text: &str| {
        tokenizer_with(byte_level(), settings).encode_prompt(text).unwrap()
    };
    let bos = json!({"bos_token": "<s>"});
    assert_eq!(encode(json!({}), "hey"), [257, 256, 121], "the post-processor's own");
    assert_eq!(encode(bos.clone(), "<s>hey"), [257, 256, 121], "never two");
    assert_eq!(encode(json!({"bos_token": "<s>", "add_bos_token": false}), "hey"), [256, 121]);
    assert_eq!(encode(json!({"bos_token": "<s>", "add_bos_token": true}), "hey"), [257, 256, 121]);
    assert_eq!(encode(bos, &"h".repeat(20)).len(), 21, "no truncation, no padding");

    let added = json!({"bos_token": {"content": "<s>"}, "add_bos_token": true});
    let sentence_piece = tokenizer_with(sentence_piece(), added);
    assert_eq!(sentence_piece.encode_prompt("a").unwrap(), [1, 263]);
    assert_eq!(sentence_piece.encode_prompt("").unwrap(), [1]);
}

#[test]
fn special_tokens_are_read_or_taken_literally() {
    let tokenizer = tokenizer_with(byte_level(), json!({"bos_token": "<s>"}));
    assert_eq!(tokenizer.encode_rendered("<|user|>he").unwrap(), [259, 256]);
    let literal = tokenizer.encode_literal("<s>").unwrap();
    assert_eq!(literal, b"<s>".map(u32::from));
    assert_eq!(tokenizer.encode_rendered("<s>").unwrap(), [257]);
}

/// A marker that `tokenizer.json` has in its vocabulary, and only `tokenizer_config.json` as added.
#[test]
fn tokens_that_only_the_settings_add() {
    let without_markers = || {
        let mut tokenizer = byte_level();
        tokenizer["added_tokens"].as_array_mut().unwrap().retain(|t| t["content"] != "<|user|>");
        for (id, token) in (257..).zip(["<s>", "</s>", "<|user|>"]) {
            tokenizer["model"]["vocab"][token] = json!(id);
        }
        tokenizer
    };
    let ids = |settings: Value| {
        tokenizer_with(without_markers(), settings).encode_rendered("<|user|>he").unwrap()
    };
    assert_eq!(ids(json!({})).len(), 9, "a marker of eight pieces");
    let marker = json!({"content": "<|user|>", "lstrip": false, "rstrip": false,
        "normalized": false, "single_word": false, "special": true});
    assert_eq!(ids(json!({"added_tokens_decoder": {"259": marker}})), [259, 256]);
    assert_eq!(ids(json!({"additional_special_tokens": ["<|user|>"]})), [259, 256]);
    assert_eq!(ids(json!({"extra_special_tokens": {"turn": "<|user|>"}})), [259, 256]);
    assert_eq!(ids(json!({"eos_token": "<|user|>"})), [259, 256]);
    // Flags of the settings count, as in Hugging Face's loader.
    let mut wide = marker.clone();
    wide["rstrip"] = json!(true);
    let wide = json!({"added_tokens_decoder": {"259": wide}});
    let tokenizer = tokenizer_with(without_markers(), wide);
    assert_eq!(tokenizer.encode_rendered("<|user|>  he").unwrap(), [259, 256]);

    let files = |settings: Value| {
        [("tokenizer.json", without_markers()), ("tokenizer_config.json", settings)]
    };
    let (_folder, wrong) = model(&files(json!({"added_tokens_decoder": {"7": marker}})));
    let error = Tokenizer::open(&wrong).unwrap_err().to_string();
    assert!(
        error.ends_with("`added_tokens_decoder.7` is the token 259 in tokenizer.json"),
        "{error}"
    );
}

#[test]
fn roles_of_tokens_may_have_a_file_of_their_own() {
    let files = [
        ("tokenizer.json", byte_level()),
        ("special_tokens_map.json", json!({"bos_token": "<s>", "eos_token": {"content": "</s>"}})),
        ("tokenizer_config.json", json!({"add_bos_token": true, "eos_token": "<|user|>"})),
        ("chat_template.jinja", json!("{{ bos_token }}{{ eos_token }}")),
    ];
    let (_folder, model) = model(&files);
    let tokenizer = Tokenizer::open(&model).unwrap();
    let template = ChatTemplate::open(&model).unwrap();
    assert_eq!(template.render(&Chat::of(conversation()), 0).unwrap(), "<s><|user|>");
    assert_eq!(tokenizer.encode_prompt("<s>hey").unwrap(), [257, 256, 121], "never two");
    assert_eq!(tokenizer.eos_token_ids().iter().copied().collect::<Vec<_>>(), [258, 259]);
}

#[test]
fn what_settings_ask_for_in_vain_is_named() {
    let settings =
        json!({"add_eos_token": true, "split_special_tokens": false, "add_prefix_space": true});
    let warnings = tokenizer_with(byte_level(), settings).warnings();
    assert_eq!(
        warnings,
        [
            "tokenizer_config.json: `add_eos_token` is true, which is not supported here and was \
             passed over",
            "tokenizer_config.json: `add_prefix_space` is true, but false in tokenizer.json, which \
             counts",
        ]
    );
}

#[test]
fn tokens_that_the_model_does_not_know() {
    let tokenizer = tokenizer_with(byte_level(), json!({}));
    assert_eq!((tokenizer.count_beyond(259), tokenizer.count_beyond(260)), (1, 0));
}

#[test]
fn ends_of_an_answer_come_from_model_and_tokenizer() {
    let tokenizer = tokenizer_with(byte_level(), json!({"eos_token": "<|user|>"}));
    assert_eq!(tokenizer.eos_token_ids().iter().copied().collect::<Vec<_>>(), [258, 259]);
    assert_eq!(tokenizer.vocab_size(), 260);
}

#[test]
fn tokens_stand_for_bytes() {
    let bytes = tokenizer_with(byte_level(), json!({}));
    assert_eq!(bytes.token_bytes(256), b"he");
    assert_eq!(bytes.token_bytes(0xc3), [0xc3]);
    assert_eq!(bytes.token_bytes(32), b" ");
    assert_eq!(bytes.token_bytes(258), b"</s>");
    assert_eq!(bytes.token_bytes(9999), b"");
    assert_eq!(bytes.token_text(0xc3), "\u{fffd}");
    let pieces = tokenizer_with(sentence_piece(), json!({}));
    assert_eq!(pieces.token_bytes(3 + 0x0a), b"\n");
    assert_eq!(pieces.token_text(263), " a");
}

#[test]
fn half_characters_are_held_back() {
    let mut stream = Detokenizer::new(tokenizer_with(byte_level(), json!({})));
    let pieces: Vec<String> =
        "a🦠b".bytes().map(|byte| stream.push(u32::from(byte)).unwrap()).collect();
    assert_eq!(pieces, ["a", "", "", "", "🦠", "b"]);
    assert_eq!(stream.push(0xf0).unwrap(), "");
    assert_eq!(stream.finish().unwrap(), "\u{fffd}");
    assert_eq!(stream.finish().unwrap(), "");
}

#[test]
fn special_tokens_give_no_text_and_noise_is_not_kept() {
    let mut stream = Detokenizer::new(tokenizer_with(byte_level(), json!({})));
    for _ in 0..1000 {
        assert_eq!(stream.push(258).unwrap(), "");
    }
    let noise: Vec<String> = (0..1000).map(|_| stream.push(0xff).unwrap()).collect();
    assert!(noise.iter().take(64).any(|piece| !piece.is_empty()));
    let shown: usize = noise.iter().map(|piece| piece.chars().count()).sum();
    assert!(shown > 900, "{shown}");
}

#[test]
fn a_completion_keeps_its_first_space() {
    let tokenizer = tokenizer_with(sentence_piece(), json!({}));
    let prompt = tokenizer.encode_prompt("a").unwrap();
    let mut completion = Detokenizer::after(Arc::clone(&tokenizer), &prompt).unwrap();
    assert_eq!(completion.push(263).unwrap(), " a");
    let mut answer = Detokenizer::new(tokenizer);
    assert_eq!(answer.push(263).unwrap(), "a");
    assert_eq!(answer.push(263).unwrap(), " a");
}

#[test]
fn a_text_has_no_fewer_tokens_than_its_length_says() {
    let mut composed = byte_level();
    composed["normalizer"] = json!({"type": "NFC"});
    for known in [byte_level(), composed, sentence_piece()] {
        let known = tokenizer_with(known, json!({}));
        for unit in [
            "hey",
            "<s>",
            "a",
            " ",
            "\n \t",
            "\u{2581}",
            "\u{e9}",
            "e\u{301}",
            "\u{1fbe}\u{308}\u{301}",
            "\u{1f82}",
            "\u{1f600}",
            "word and word ",
        ] {
            for count in [1, 2, 50, 999] {
                let text = unit.repeat(count);
                let (least, tokens) =
                    (known.least_tokens(&text), known.encode_prompt(&text).unwrap().len());
                assert!(least <= tokens, "{least} of {tokens} in {count} times {unit:?}");
            }
        }
        assert!(known.least_tokens(&"x".repeat(1_000_000)) > 10_000);
    }
    // What drops text, or swallows any amount of it, says nothing.
    let mut fused = sentence_piece();
    fused["model"]["byte_fallback"] = json!(false);
    let mut shortened = byte_level();
    shortened["normalizer"] = json!({"type": "NFKC"});
    let mut holes = byte_level();
    holes["pre_tokenizer"] = json!({"type": "Split", "pattern": {"String": "x"}, "behavior": "Removed",
                                    "invert": false});
    for unknown in [fused, shortened, holes] {
        assert_eq!(tokenizer_with(unknown, json!({})).least_tokens(&"x".repeat(1000)), 0);
    }
}

#[test]
fn a_tokenizer_that_is_missing_or_broken() {
    let (_folder, missing) = model(&[]);
    let error = Tokenizer::open(&missing).unwrap_err().to_string();
    let problem = "tokenizer.json: there is no such file, but a model that is served has one (or a \
                   tiktoken.model or tokenizer.model)";
    assert!(error.ends_with(problem), "{error}");
    for broken in [json!({}), json!("nonsense"), json!([1]), json!({"model": {"type": "BPE"}})] {
        let (_folder, broken) = model(&[("tokenizer.json", broken)]);
        let error = Tokenizer::open(&broken).unwrap_err().to_string();
        assert!(error.contains("tokenizer.json: is no tokenizer: "), "{error}");
    }
    // The library panics over a decoder that is no JSON.
    let (folder, sound) = model(&[("tokenizer.json", byte_level())]);
    let file = folder.path().join("tokenizer.json");
    let broken = fs::read_to_string(&file).unwrap().replace("\"decoder\":{", "\"decoder\":{\"x\"");
    fs::write(&file, broken).unwrap();
    let error = Tokenizer::open(&sound).unwrap_err().to_string();
    assert!(
        error.ends_with("tokenizer.json: is no tokenizer: its settings make no sense"),
        "{error}"
    );
    let files = [("tokenizer.json", byte_level()), ("tokenizer_config.json", json!("{"))];
    let (_folder, broken) = model(&files);
    assert!(Tokenizer::open(&broken).unwrap_err().to_string().contains("tokenizer_config.json"));
}

fn streamed(tokenizer: &Arc<Tokenizer>, ids: &[u32]) -> String {
    let mut stream = Detokenizer::new(Arc::clone(tokenizer));
    let mut text: String = ids.iter().map(|id| stream.push(*id).unwrap()).collect();
    text.push_str(&stream.finish().unwrap());
    text
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn streams_equal_the_whole(text in "[ ab\u{0}-\u{ff}€🦠\u{fffd}]{0,40}") {
        for tokenizer in [byte_level(), sentence_piece()] {
            let tokenizer = tokenizer_with(tokenizer, json!({}));
            let ids = tokenizer.encode_rendered(&text).unwrap();
            prop_assert_eq!(&tokenizer.decode(&ids, true).unwrap(), &text);
            prop_assert_eq!(streamed(&tokenizer, &ids), text.clone());
        }
    }

    /// Byte-level tokens at random, most of them no UTF-8, and special ones between them.
    #[test]
    fn streams_equal_the_whole_even_of_noise(ids in prop::collection::vec(0_u32..270, 0..32)) {
        let tokenizer = tokenizer_with(byte_level(), json!({}));
        prop_assert_eq!(streamed(&tokenizer, &ids), tokenizer.decode(&ids, true).unwrap());
    }

    #[test]
    fn noise_never_breaks_a_stream(ids in prop::collection::vec(0_u32..270, 0..80)) {
        streamed(&tokenizer_with(sentence_piece(), json!({})), &ids);
    }
}

fn conversation() -> Vec<ChatMessage> {
    let message = ChatMessage::new;
    vec![message("system", "Be <kind> & \"short\"."), message("user", "  Héllo\n")]
}

fn template(source: &str) -> ChatTemplate {
    let settings =
        json!({"chat_template": source, "bos_token": "<s>", "eos_token": {"content": "</s>"}});
    ChatTemplate::open(&model(&[("tokenizer_config.json", settings)]).1).unwrap()
}

fn render(source: &str) -> Result<String, ChatError> {
    template(source).render(&Chat::of(conversation()), 0)
}

#[test]
fn a_template_in_the_usual_style() {
    let source = "\
{{- bos_token }}
{%- for message in messages %}
    {% if message['role'] == 'system' -%}
        <<SYS>>{{ message.content | trim }}<</SYS>>
    {%- elif loop.last and message.role.startswith('us') %}
[INST]{{ message['content'].strip() }}[/INST]
    {% endif %}
{% endfor %}
{% if add_generation_prompt and tools is none %}
assistant:{% endif %}";
    assert_eq!(
        render(source).unwrap(),
        "<s><<SYS>>Be <kind> & \"short\".<</SYS>>[INST]Héllo[/INST]\nassistant:"
    );
}

#[test]
fn what_templates_use_of_python() {
    for (source, expected) in [
        ("{{ messages[1]['content'].split('l')[0].upper() }}", "  HÉ"),
        (
            "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
            "2",
        ),
        (
            "{% for m in messages %}{% if loop.index0 == 1 %}{% break %}{% endif %}{{ m.role }}{% endfor %}",
            "system",
        ),
        ("{{ messages[1:][0]['role'] }}{{ messages[-1].role }}", "useruser"),
        ("{% macro f(x) %}({{ x }}){% endmacro %}{{ f(eos_token) }}", "(</s>)"),
        ("{{ messages[0].content | tojson }}", "\"Be <kind> & \\\"short\\\".\""),
        ("{{ {'a': [1, 'x', none, true]} | tojson }}", "{\"a\": [1, \"x\", null, true]}"),
        ("{{ {'a': [1]} | tojson(indent=2) }}", "{\n  \"a\": [\n    1\n  ]\n}"),
        ("{{ unk_token }}{{ unk_token is defined }}", "False"),
        ("{% generation %}x{%- endgeneration %}", "x"),
        ("{{ messages[0].get('name', 'nobody') }}", "nobody"),
        (
            "{{ 'a' ~ 1 }}{{ [1, 2] | length }}{{ messages | map(attribute='role') | join(',') }}",
            "a12system,user",
        ),
    ] {
        assert_eq!(render(source).as_deref(), Ok(expected), "{source}");
    }
}

/// A file that was written or checked out on Windows.
#[test]
fn ends_of_lines_are_one_character() {
    let source = "{% for m in messages %}\n  {{ m.role }}\n{% endfor %}\nend\n";
    let lines = render(source).unwrap();
    assert!(lines.contains("system\n"), "{lines:?}");
    assert_eq!(render(&source.replace('\n', "\r\n")).unwrap(), lines);
    assert_eq!(render(&source.replace('\n', "\r")).unwrap(), lines);
    let (folder, model) = model(&[("chat_template.jinja", json!(""))]);
    fs::write(folder.path().join("chat_template.jinja"), source.replace('\n', "\r\n")).unwrap();
    let template = ChatTemplate::open(&model).unwrap();
    assert_eq!(template.render(&Chat::of(conversation()), 0).unwrap(), lines);
}

#[test]
fn now_is_what_clocks_show() {
    let source = "{{ strftime_now('%d %B %Y %H:%M %Z') }}";
    let render =
        |zone| template(source).in_zone(zone).render(&Chat::of(conversation()), 0).unwrap();
    assert_eq!(render("Asia/Tokyo"), "01 January 1970 09:00 JST");
    assert_eq!(render("America/Los_Angeles"), "31 December 1969 16:00 PST");
    assert_eq!(render("UTC"), "01 January 1970 00:00 UTC");
}

/// The environment of a process is set from outside: this test runs itself in others.
#[test]
fn the_zone_of_clocks_is_that_of_the_environment() {
    const EXPECTED: &str = "PLANARIA_TEST_EXPECTED_TIME";
    if let Ok(expected) = std::env::var(EXPECTED) {
        assert_eq!(render("{{ strftime_now('%H:%M %Z') }}").unwrap(), expected);
        return;
    }
    for (zone, expected) in [
        ("Asia/Tokyo", "09:00 JST"),
        ("America/New_York", "19:00 EST"),
        ("XYZ-3", "03:00 XYZ"),
        ("UTC", "00:00 UTC"),
        ("No/Where", "00:00 UTC"),
    ] {
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "the_zone_of_clocks_is_that_of_the_environment"])
            .env("TZ", zone)
            .env(EXPECTED, expected)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("1 passed"), "{zone}: {said}");
    }
}

#[test]
fn runaway_templates_are_stopped() {
    for source in [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% set ns = namespace(s='x') %}{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
        "{{ 'x' * 1000000000 }}",
        "{% for i in range(99999) %}aaaaaaaaaaaaaaaaaaaaaaaaaaaa{% endfor %}",
        "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
        "{% for i in range(9999) %}{{ messages }}{{ messages }}{{ messages }}{{ messages }}{% endfor %}",
    ] {
        let error = render(source).unwrap_err();
        assert!(matches!(error, ChatError::Runaway(_)), "{source}: {error}");
    }
}

#[test]
fn templates_can_refuse_messages() {
    let source = "{% if messages[0].role == 'system' %}{{ raise_exception('No system: ' ~ messages[0].role) }}{% endif %}";
    assert_eq!(render(source), Err(ChatError::Refused("No system: system".to_owned())));
    let inside_a_macro = format!("{{% macro f() %}}{source}{{% endmacro %}}{{{{ f() }}}}");
    assert_eq!(render(&inside_a_macro), Err(ChatError::Refused("No system: system".to_owned())));
}

#[test]
fn what_templates_say_when_they_refuse_or_break_is_bounded() {
    for source in [
        "{{ raise_exception('no' * 100000) }}",
        "{% set f = 'no' * 100000 %}{{ {}[f]() }}{{ raise_exception(f) }}",
    ] {
        let said = render(source).unwrap_err().to_string();
        assert!(said.len() < 2000, "{} bytes: {}", said.len(), &said[..200]);
    }
    let said = render("{{ raise_exception('no' * 100000) }}").unwrap_err().to_string();
    assert!(said.ends_with("nono\u{2026}"), "{said}");
}

#[test]
fn broken_templates_say_so() {
    for source in [
        "{% if %}",
        "{{ nothing() }}",
        "{{ messages[0].role.frobnicate() }}",
        "{% include 'x' %}",
        "{{ '",
    ] {
        assert!(matches!(render(source), Err(ChatError::Broken(_))), "{source}");
    }
    let deep = format!("{{{{ {}1{} }}}}", "(".repeat(10_000), ")".repeat(10_000));
    assert!(matches!(render(&deep), Err(ChatError::Broken(_))));
    assert!(template("{% if %}").usable().is_err());
}

#[test]
fn a_model_without_a_template_points_to_completions() {
    for settings in [json!({}), json!({"chat_template": null})] {
        let template =
            ChatTemplate::open(&model(&[("tokenizer_config.json", settings)]).1).unwrap();
        let error = template.render(&Chat::of(conversation()), 0).unwrap_err();
        assert_eq!(error, ChatError::NoTemplate);
        assert!(error.to_string().ends_with("use /v1/completions"));
    }
    assert_eq!(ChatTemplate::open(&model(&[]).1).unwrap().usable(), Err(ChatError::NoTemplate));
}

#[test]
fn templates_in_all_their_places() {
    let named = json!({"chat_template": [
        {"name": "tool_use", "template": "tools"}, {"name": "default", "template": "named"}]});
    let open = |files: &[(&str, Value)]| {
        ChatTemplate::open(&model(files).1).map(|t| t.render(&Chat::of(conversation()), 0))
    };
    let settings = ("tokenizer_config.json", named);
    let json_file = ("chat_template.json", json!({"chat_template": "json"}));
    let jinja_file = ("chat_template.jinja", json!("jinja {{ messages | length }}"));
    let rendered = |files: &[(&str, Value)]| open(files).unwrap().unwrap();
    assert_eq!(rendered(std::slice::from_ref(&settings)), "named");
    assert_eq!(rendered(&[settings.clone(), json_file.clone()]), "json");
    assert_eq!(rendered(&[settings, json_file, jinja_file]), "jinja 2");
    for wrong in [json!({"chat_template": 3}), json!({"chat_template": []})] {
        let error = open(&[("tokenizer_config.json", wrong)]).unwrap_err().to_string();
        assert!(error.contains("tokenizer_config.json: `chat_template` is "), "{error}");
    }
}

#[test]
fn long_conversations_are_no_runaways() {
    let source =
        "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] | trim }}</s>\n{% endfor %}";
    let turn = ChatMessage::new("user", "word ".repeat(2000));
    let prompt = template(source).render(&Chat::of(vec![turn; 500]), 0).unwrap();
    assert!(prompt.len() > 4_900_000);
}
