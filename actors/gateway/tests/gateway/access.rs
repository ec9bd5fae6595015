//! Who may ask, by which name, and for what.

use planaria_gateway::Limits;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::client::{CHAT, Client, chat, json_of};
use crate::double::saying;
use crate::server::{Options, start, start_with};

const ROUTES: [(&str, &str); 13] = [
    ("OPTIONS", CHAT),
    ("POST", CHAT),
    ("POST", "/v1/completions"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/tests/bytes"),
    ("GET", "/ready"),
    ("GET", "/cluster"),
    ("GET", "/page/"),
    ("GET", "/cluster/models"),
    ("PUT", "/cluster/models/tests/bytes"),
    ("DELETE", "/cluster/models/tests/bytes"),
    ("GET", "/no/such/route"),
    ("PUT", CHAT),
];

async fn ask(
    client: &Client,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
) -> (StatusCode, Value) {
    let mut request = client.request(method.parse().unwrap(), path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let body = (method == "POST").then(|| chat(json!({"prompt": "Hi"})).to_string());
    let response = request.body(body.unwrap_or_default()).send().await.unwrap();
    json_of(response).await
}

#[tokio::test]
async fn every_route_but_health_demands_the_key() {
    let options = Options { api_key: Some("sk-right"), ..Options::default() };
    let server = start_with([saying("ok")], options).await;
    let client = server.client();
    assert_eq!(client.get("/health").await.0, 200);
    for (method, path) in ROUTES {
        for headers in [
            vec![],
            vec![("authorization", "Bearer sk-wrong")],
            vec![("authorization", "sk-right")],
        ] {
            let (status, answer) = ask(&client, method, path, &headers).await;
            assert_eq!(status, 401, "{method} {path}");
            assert_eq!(answer["error"]["code"], "invalid_api_key");
            assert_eq!(answer["error"]["type"], "invalid_request_error");
        }
        let right = [("authorization", "Bearer sk-right")];
        let (status, _) = ask(&client, method, path, &right).await;
        assert_ne!(status, 401, "{method} {path}");
    }
    assert_eq!(server.double.requests().len(), 2);
}

#[tokio::test]
async fn a_missing_key_is_challenged() {
    let options = Options { api_key: Some("sk-right"), ..Options::default() };
    let server = start_with([saying("ok")], options).await;
    let response = server.client().request(Method::GET, "/ready").send().await.unwrap();
    assert_eq!(response.headers()["www-authenticate"], "Bearer");
}

#[tokio::test]
async fn foreign_hosts_are_refused() {
    let options = Options { allowed_hosts: vec!["gpu.lan".to_owned()], ..Options::default() };
    let server = start_with([saying("ok")], options).await;
    let client = server.client();
    for (host, status) in [
        ("evil.example", 403),
        ("evil.example:8420", 403),
        ("192.168.7.7", 403),
        ("gpu.lan:8420", 200),
        ("localhost:1", 200),
        ("127.0.0.1", 200),
        ("[::1]:8420", 200),
    ] {
        for path in ["/v1/models", "/health"] {
            let (found, answer) = ask(&client, "GET", path, &[("host", host)]).await;
            assert_eq!(found, status, "{host}{path}");
            if status == 403 {
                assert_eq!(answer["error"]["code"], "host_not_allowed");
                assert!(answer["error"]["message"].as_str().unwrap().contains("allowed-hosts"));
            }
        }
    }
}

#[tokio::test]
async fn ipv6_works_where_there_is_any() {
    if tokio::net::TcpListener::bind("[::1]:0").await.is_err() {
        return;
    }
    let server =
        start_with([saying("ok")], Options { listen: "[::1]:0", ..Options::default() }).await;
    server.client().chat(json!({})).await;
}

#[tokio::test]
async fn an_unspecified_address_is_known_by_that_of_the_connection() {
    let options = Options { listen: "0.0.0.0:0", ..Options::default() };
    let server = start_with([saying("ok")], options).await;
    let client = Client::new(format!("http://127.0.0.1:{}", server.address.port()));
    assert_eq!(client.get("/v1/models").await.0, 200);
    let (status, _) = ask(&client, "GET", "/v1/models", &[("host", "0.0.0.0")]).await;
    assert_eq!(status, 403);
}

#[tokio::test]
async fn web_pages_are_refused_unless_their_origin_is_known() {
    let options = Options {
        cors_origins: vec!["https://Chat.example".to_owned()],
        api_key: Some("sk-right"),
        ..Options::default()
    };
    let server = start_with([saying("ok")], options).await;
    let client = server.client();
    let key = ("authorization", "Bearer sk-right");
    for origin in ["https://evil.example", "null", "https://chat.example.evil.example"] {
        let (status, answer) = ask(&client, "POST", CHAT, &[key, ("origin", origin)]).await;
        assert_eq!(status, 403, "{origin}");
        assert_eq!(answer["error"]["code"], "origin_not_allowed");
    }
    assert_eq!(server.double.requests(), []);

    let preflight = client
        .request(Method::OPTIONS, CHAT)
        .header("origin", "https://chat.example")
        .header("access-control-request-method", "POST")
        .header("access-control-request-headers", "authorization,x-stainless-os")
        .send()
        .await
        .unwrap();
    assert_eq!(preflight.status(), 200);
    let headers = preflight.headers();
    assert_eq!(headers["access-control-allow-origin"], "https://chat.example");
    assert_eq!(headers["access-control-allow-headers"], "authorization,x-stainless-os");

    let answer = client
        .request(Method::POST, CHAT)
        .header("origin", "https://chat.example")
        .header(key.0, key.1)
        .json(&chat(json!({})))
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["access-control-allow-origin"], "https://chat.example");
}

#[tokio::test]
async fn pages_of_applications_may_do_what_any_client_may() {
    for (setting, origins) in [
        (
            vec!["app://obsidian.md", "chrome-extension://abc"],
            vec!["app://obsidian.md", "chrome-extension://abc"],
        ),
        (vec!["*"], vec!["tauri://localhost", "null", "https://any.example"]),
    ] {
        let cors_origins = setting.iter().map(ToString::to_string).collect();
        let server =
            start_with([saying("ok")], Options { cors_origins, ..Options::default() }).await;
        let client = server.client();
        for origin in origins {
            for method in ["POST", "DELETE", "PUT", "GET"] {
                let preflight = client
                    .request(Method::OPTIONS, "/v1/chat/completions/chatcmpl-1")
                    .header("origin", origin)
                    .header("access-control-request-method", method)
                    .header("access-control-request-private-network", "true")
                    .send()
                    .await
                    .unwrap();
                assert_eq!(preflight.status(), 200);
                let header = |name: &str| preflight.headers()[name].to_str().unwrap().to_owned();
                assert!(header("access-control-allow-methods").contains(method), "{method}");
                assert!(["*", origin].contains(&header("access-control-allow-origin").as_str()));
                assert_eq!(header("access-control-allow-private-network"), "true");
            }
            let (status, _) = ask(&client, "POST", CHAT, &[("origin", origin)]).await;
            assert_eq!(status, 200, "{origin}");
        }
        let (status, _) = ask(&client, "POST", CHAT, &[("origin", "https://other.example")]).await;
        assert_eq!(status, if setting == ["*"] { 200 } else { 403 });
    }
}

#[tokio::test]
async fn unknown_routes_and_methods_are_errors_in_json() {
    let server = start([saying("ok")]).await;
    let client = server.client();
    let (status, answer) = client.get("/v2/chat").await;
    assert_eq!(status, 404);
    assert_eq!(answer["error"]["code"], "unknown_url");
    for (method, path) in [("GET", CHAT), ("DELETE", "/v1/models"), ("PUT", "/health")] {
        let request = client.request(method.parse().unwrap(), path);
        let response = request.send().await.unwrap();
        let allowed = response.headers()["allow"].to_str().unwrap().to_owned();
        assert!(allowed.contains(if path == CHAT { "POST" } else { "GET" }), "{allowed}");
        let (status, answer) = json_of(response).await;
        assert_eq!(status, 405);
        assert_eq!(answer["error"]["code"], "method_not_allowed");
    }
}

#[tokio::test]
async fn slashes_too_many_lead_to_the_same_route() {
    let server = start([saying("ok")]).await;
    let client = server.client();
    for path in
        ["/v1/models/", "//v1/models", "/v1//models//", "/health/", "/v1/models/tests/bytes/"]
    {
        assert_eq!(client.get(path).await.0, 200, "{path}");
    }
    for path in ["/v1/chat/completions/", "//v1/chat/completions?api-version=1"] {
        assert_eq!(client.post(path, &chat(json!({}))).await.0, 200, "{path}");
    }
    let (status, answer) = client.get("/v1/chat/completions/").await;
    assert_eq!((status.as_u16(), &answer["error"]["code"]), (405, &json!("method_not_allowed")));
    // The key is demanded for them as for any.
    let options = Options { api_key: Some("sk-right"), ..Options::default() };
    let server = start_with([saying("ok")], options).await;
    for path in ["//v1/models", "/v1/models/", "/health//../v1/models", "//page/x"] {
        assert_eq!(server.client().get(path).await.0, 401, "{path}");
    }
    assert_eq!(server.client().get("//health/").await.0, 200);
}

#[tokio::test]
async fn unknown_urls_are_said_to_be_and_those_that_are_meant() {
    let server = start([saying("ok")]).await;
    let client = server.client();
    for (path, said) in [
        ("/v1", "unknown request URL: GET /v1; there are `/v1/chat/completions`"),
        ("/v1/", "unknown request URL: GET /v1; there are"),
        ("/v1/embeddings", "there are `/v1/chat/completions`, `/v1/completions`"),
        ("/chat/completions", "`/v1/chat/completions` is meant"),
        ("/v1/v1/models", "`/v1/models` is meant"),
        ("/v1/v1/completions", "`/v1/completions` is meant"),
    ] {
        let (status, answer) = client.get(path).await;
        assert_eq!((status.as_u16(), &answer["error"]["code"]), (404, &json!("unknown_url")));
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(message.contains(said), "{message}");
    }
}

#[tokio::test]
async fn large_bodies_are_refused() {
    let limits = Limits { body_bytes: 10_000, ..Limits::default() };
    let server = start_with([saying("ok")], Options { limits, ..Options::default() }).await;
    let client = server.client();
    // Read and forgotten, given up on, never said to be so long.
    for bytes in [10_001, 50_000, 1_000_000] {
        for announced in [true, false] {
            let request = client.request(Method::POST, CHAT);
            let text = "x".repeat(bytes);
            let request = if announced {
                request.body(text)
            } else {
                let parts = futures::stream::iter([Ok::<_, std::io::Error>(text)]);
                request.body(reqwest::Body::wrap_stream(parts))
            };
            let Ok(response) = request.send().await else {
                assert!(bytes > 80_000, "a client that sends little more gets its answer");
                continue;
            };
            let (status, answer) = json_of(response).await;
            assert_eq!(status, 413);
            assert_eq!(answer["error"]["code"], "request_too_large");
        }
    }
    client.chat(json!({})).await;
}
