use super::*;

fn resolve(
    flags: &[(&'static str, &str)],
    variables: &[(&str, &str)],
    file: &str,
) -> Result<(Settings, Vec<SettingValue>), InvalidSettings> {
    let mut overrides = Overrides::new();
    for (key, value) in flags {
        overrides.entry(key).or_default().push((*value).to_owned());
    }
    let mut environment: Environment =
        variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    environment.insert("HOME".to_owned(), "/home/ada".to_owned());
    let file = Some((PathBuf::from("planaria.toml"), file.to_owned()));
    let machine = Machine {
        name: "lovelace",
        kernels: &["avx2", "plain"],
        tool_formats: &["hermes", "glm"],
        reasoning_formats: &["seed"],
    };
    Settings::resolve(&overrides, &environment, file, &machine)
}

#[test]
fn defaults_stand_without_any_layer() {
    let (settings, values) = resolve(&[], &[], "").unwrap();
    assert_eq!(settings.name, "lovelace");
    assert_eq!(settings.data_dir, PathBuf::from("/home/ada/.planaria"));
    assert_eq!(settings.api.port(), 8420);
    assert_eq!(settings.memory_limit, None);
    assert!(values.iter().all(|value| value.origin == Origin::Default));
    assert_eq!(values.len(), SETTINGS.len());
}

#[test]
fn flags_beat_variables_beat_the_file() {
    let file = "name = 'file'\ncontext = 64\nmax-sequences = 3\njoin = ['a:1', 'b:2']";
    let variables = [("PLANARIA_NAME", "variable"), ("PLANARIA_CONTEXT", "128")];
    let (settings, values) = resolve(&[("name", "flag")], &variables, file).unwrap();
    assert_eq!((settings.name.as_str(), settings.context), ("flag", 128));
    assert_eq!(settings.max_sequences, 3);
    assert_eq!(settings.join.len(), 2);
    let origin = |key| values.iter().find(|v| v.key == key).map(|v| v.origin.to_string()).unwrap();
    assert_eq!(origin("name"), "--name");
    assert_eq!(origin("context"), "$PLANARIA_CONTEXT");
    assert_eq!(origin("max-sequences"), "planaria.toml");
}

#[test]
fn a_list_in_a_variable_is_separated_by_commas() {
    let (settings, _) = resolve(&[], &[("PLANARIA_MODEL", "a/b, c")], "").unwrap();
    let names: Vec<_> = settings.models.iter().map(ModelName::as_str).collect();
    assert_eq!(names, ["a/b", "c"]);
}

#[test]
fn pins_name_a_model_and_a_range() {
    let (settings, _) = resolve(&[], &[("PLANARIA_PIN", "a/b=0-11, c=3")], "").unwrap();
    let pins: Vec<_> = settings.pins.iter().map(|(m, l)| format!("{m} {l}")).collect();
    assert_eq!(pins, ["a/b 0-11", "c 3-3"]);
    let error = resolve(&[], &[], "pin = ['a', 'a=4-2', '..=1', 'a=x']").unwrap_err();
    assert_eq!(error.mistakes.len(), 4, "{error}");
    let error = resolve(&[], &[], "pin = ['a=0-3', 'b=0-3', 'a=4-5']").unwrap_err().to_string();
    assert!(error.contains("`a` is pinned twice, to 0-3 and to 4-5"), "{error}");
}

#[test]
fn all_mistakes_are_reported_at_once() {
    let file = "contxt = 5\nlisten = 7\nstep-timeout = []";
    let flags = [("model", ".."), ("memory-limit", "a lot"), ("api", "0.0.0.0:80")];
    let error = resolve(&flags, &[("PLANARIA_STRATEGY", "magic")], file).unwrap_err();
    let text = error.to_string();
    for part in [
        "contxt (planaria.toml): no such setting; the nearest is `context`",
        "listen (planaria.toml): `7` is not an address",
        "step-timeout (planaria.toml): takes one value",
        "--model: `..` is not a model name",
        "--memory-limit: `a lot` is not a size",
        "$PLANARIA_STRATEGY: `magic` is not a strategy",
    ] {
        assert!(text.contains(part), "{part:?} is missing in:\n{text}");
    }
}

#[test]
fn threads_are_a_number_or_as_many_as_there_are_cores() {
    let threads = |text: &str| resolve(&[("threads", text)], &[], "").map(|(s, _)| s.threads);
    assert_eq!(threads("auto"), Ok(None));
    assert_eq!(threads("3"), Ok(NonZeroUsize::new(3)));
    assert_eq!(resolve(&[], &[], "threads = 2").unwrap().0.threads, NonZeroUsize::new(2));
    for wrong in ["0", "-1", "1.5", "1025", "all", "", "99999999999999999999"] {
        let error = threads(wrong).unwrap_err().to_string();
        let words = format!("`{wrong}` is neither `auto` nor a whole number from 1 to 1024");
        assert!(error.contains("--set threads: ") && error.contains(&words), "{error}");
    }
}

#[test]
fn kernels_are_those_that_the_machine_has() {
    let kernels = |text: &str| resolve(&[("kernels", text)], &[], "").map(|(s, _)| s.kernels);
    assert_eq!(kernels("auto"), Ok(None));
    assert_eq!(kernels("plain"), Ok(Some("plain")));
    for wrong in ["avx512", "sse", "AVX2", ""] {
        let error = kernels(wrong).unwrap_err().to_string();
        let words = format!("no kernels `{wrong}`; there are `auto`, `avx2`, `plain`");
        assert!(error.contains(&words), "{error}");
    }
    let set = Overrides::from([("kernels", vec!["plain".to_owned()])]);
    let mac = Machine { name: "mac", kernels: &[], tool_formats: &[], reasoning_formats: &[] };
    let error = Settings::resolve(&set, &Environment::new(), None, &mac).unwrap_err().to_string();
    assert!(error.contains("write `auto`"), "{error}");
}

#[test]
fn an_api_beyond_loopback_needs_a_key() {
    let error = resolve(&[("api", "0.0.0.0:8420")], &[], "").unwrap_err();
    assert!(error.to_string().contains("--api-key-file"), "{error}");
    assert!(resolve(&[("api", "0.0.0.0:8420"), ("api-key-file", "k")], &[], "").is_ok());
}

#[test]
fn mdns_is_on_unless_any_layer_says_off() {
    let mdns = |flags: &[_], variables: &[_], file| {
        resolve(flags, variables, file).map(|(settings, _)| settings.mdns)
    };
    assert_eq!(mdns(&[], &[], ""), Ok(true));
    assert_eq!(mdns(&[], &[], "mdns = false"), Ok(false));
    assert_eq!(mdns(&[], &[("PLANARIA_MDNS", "off")], "mdns = true"), Ok(false));
    assert_eq!(mdns(&[("mdns", "on")], &[], "mdns = 'off'"), Ok(true));
    assert!(mdns(&[("mdns", "maybe")], &[], "").is_err());
}

#[test]
fn times_have_units() {
    for (text, millis) in [("250ms", 250), ("30s", 30_000), ("5m", 300_000)] {
        assert_eq!(duration(text), Ok(Duration::from_millis(millis)));
    }
    for text in ["", "5", "ms", "-1s", "0s", "1000000m", "99999999999999999999s"] {
        assert!(duration(text).is_err(), "{text}");
    }
}

#[test]
fn traces_go_to_a_collector_in_the_network() {
    let (settings, _) = resolve(&[], &[("PLANARIA_TRACES", "http://localhost:4317/")], "").unwrap();
    assert_eq!(settings.traces.as_ref().map(CollectorUrl::as_str), Some("http://localhost:4317"));
    assert_eq!(settings.trace_protocol, TraceProtocol::Grpc);
    assert!(resolve(&[], &[], "").unwrap().0.traces.is_none());
    for wrong in
        ["localhost:4317", "http://", "http://a b:1", "ftp://x:1", "https://x:4317", "http://x"]
    {
        assert!(resolve(&[], &[("PLANARIA_TRACES", wrong)], "").is_err(), "{wrong}");
    }
    assert!(resolve(&[("trace-protocol", "smoke")], &[], "").is_err());
}

#[test]
fn a_part_of_requests_is_between_none_and_all() {
    let ratio =
        |file: &str| resolve(&[], &[], file).map(|(settings, _)| settings.trace_ratio.get());
    assert_eq!(ratio(""), Ok(1.0));
    assert_eq!(ratio("trace-ratio = 0.05"), Ok(0.05));
    assert_eq!(ratio("trace-ratio = 0"), Ok(0.0));
    for wrong in ["1.1", "-0.1", "nan", "'all'"] {
        assert!(ratio(&format!("trace-ratio = {wrong}")).is_err(), "{wrong}");
    }
}

#[test]
fn pages_and_applications_have_origins() {
    let origins =
        |text: &str| resolve(&[("cors-origins", text)], &[], "").map(|s| s.0.cors_origins);
    for (written, origin) in [
        ("https://chat.example", "https://chat.example"),
        ("https://Chat.example/", "https://chat.example"),
        ("https://chat.example:443", "https://chat.example"),
        ("http://localhost:3000", "http://localhost:3000"),
        ("http://localhost:80/", "http://localhost"),
        ("http://[::1]:3000", "http://[::1]:3000"),
        ("app://obsidian.md", "app://obsidian.md"),
        ("tauri://localhost/", "tauri://localhost"),
        ("chrome-extension://abcdefghijklmnop", "chrome-extension://abcdefghijklmnop"),
        ("moz-extension://0a1b-2c", "moz-extension://0a1b-2c"),
        ("capacitor://localhost", "capacitor://localhost"),
        ("*", "*"),
    ] {
        assert_eq!(origins(written), Ok(vec![origin.to_owned()]), "{written}");
    }
    for wrong in [
        "",
        "localhost",
        "null",
        "https://",
        "https:///",
        "https://chat.example/path",
        "https://*.example",
        "https://a b",
        "://a",
        "1a://a",
        "https://a//",
    ] {
        let error = origins(wrong).unwrap_err().to_string();
        assert!(error.contains("--set cors-origins: ") && error.contains("app://"), "{error}");
    }
    let file = resolve(&[], &[], "cors-origins = ['x']").unwrap_err().to_string();
    assert!(file.contains("cors-origins (planaria.toml): "), "{file}");
    let flag = resolve(&[("api", "x")], &[], "").unwrap_err().to_string();
    assert!(flag.contains("--api: "), "{flag}");
}

#[test]
fn parsers_are_of_one_model_or_of_all() {
    let parsers = |texts: &[&'static str]| {
        let flags: Vec<_> = texts.iter().map(|text| ("tool-parser", *text)).collect();
        resolve(&flags, &[], "").map(|(settings, _)| settings.tool_parsers)
    };
    let model: ModelName = "org/m".parse().unwrap();
    let of = |texts: &[&'static str]| parsers(texts).map(|set| set.of(&model).copied());
    assert_eq!(of(&[]), Ok(None));
    assert_eq!(of(&["glm"]), Ok(Some("glm")));
    assert_eq!(of(&["org/m=none", "glm"]), Ok(Some("none")));
    assert_eq!(of(&["org/m2=none"]), Ok(None));
    let mistakes = parsers(&["xml"]).unwrap_err();
    assert!(
        mistakes.to_string().contains("`xml` is no format: there are none, hermes, glm"),
        "{mistakes}"
    );
}

#[test]
fn kv_bits_are_of_one_model_or_of_all() {
    let model: ModelName = "org/m".parse().unwrap();
    let of = |texts: &[&'static str]| {
        let flags: Vec<_> = texts.iter().map(|text| ("kv-bits", *text)).collect();
        resolve(&flags, &[], "").map(|(settings, _)| settings.kv_bits.of(&model).copied())
    };
    assert_eq!(of(&[]), Ok(None));
    assert_eq!(of(&["8", "org/m=none"]), Ok(Some(None)));
    assert_eq!(of(&["4"]), Ok(Some(Some(KvBits::Four))));
    let twice = of(&["m=8", "8", "m=4"]).unwrap_err().to_string();
    assert!(twice.contains("says two things of `m`"), "{twice}");
    assert!(of(&["4", "8"]).is_err());
    for wrong in ["3", "org/m=16", "=8", "m=8=8"] {
        let error = of(&[wrong]).unwrap_err().to_string();
        assert!(error.contains("kv-bits"), "{error}");
    }
}
