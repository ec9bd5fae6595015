//! The page: what browsers are told that they may do with it, and what of it needs no key.

use reqwest::{Method, Response};

use crate::client::{CHAT, Client, chat};
use crate::double::saying;
use crate::server::{Options, start, start_with};

const FILES: [(&str, &str); 3] = [
    ("/", "text/html; charset=utf-8"),
    ("/page/page.css", "text/css; charset=utf-8"),
    ("/page/main.js", "text/javascript; charset=utf-8"),
];

async fn fetch(client: &Client, path: &str, headers: &[(&str, &str)]) -> Response {
    let mut request = client.request(Method::GET, path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.send().await.unwrap()
}

#[tokio::test]
async fn browsers_are_told_what_the_page_may_do() {
    let server = start([saying("ok")]).await;
    for (path, kind) in FILES {
        let answer = fetch(&server.client(), path, &[]).await;
        assert_eq!(answer.status(), 200, "{path}");
        let header = |name: &str| answer.headers()[name].to_str().unwrap().to_owned();
        assert_eq!(header("content-type"), kind);
        assert_eq!(
            header("content-security-policy"),
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
             connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        );
        assert_eq!(header("x-content-type-options"), "nosniff");
        assert_eq!(header("referrer-policy"), "no-referrer");
        assert_eq!(header("cache-control"), "no-cache");
        assert!(!answer.text().await.unwrap().is_empty());
    }
    let (status, answer) = server.client().get("/page/none.js").await;
    assert_eq!((status.as_u16(), answer["error"]["code"].as_str()), (404, Some("unknown_url")));
}

#[tokio::test]
async fn a_file_that_is_known_is_not_sent_again() {
    let server = start([saying("ok")]).await;
    let first = fetch(&server.client(), "/", &[]).await;
    let tag = first.headers()["etag"].to_str().unwrap().to_owned();
    let again = fetch(&server.client(), "/", &[("if-none-match", &tag)]).await;
    assert_eq!((again.status().as_u16(), again.headers()["etag"].to_str().unwrap()), (304, &*tag));
    assert!(again.headers().contains_key("content-security-policy"));
    assert_eq!(again.text().await.unwrap(), "");
    let other = fetch(&server.client(), "/", &[("if-none-match", "\"other\"")]).await;
    assert_eq!(other.status(), 200);
}

#[tokio::test]
async fn the_page_needs_no_key_and_all_that_it_shows_does() {
    let options = Options { api_key: Some("sk-right"), ..Options::default() };
    let server = start_with([saying("ok")], options).await;
    let client = server.client();
    for (path, _) in FILES {
        assert_eq!(fetch(&client, path, &[]).await.status(), 200, "{path}");
    }
    let key = ("authorization", "Bearer sk-right");
    for path in ["/cluster", "/cluster/events"] {
        assert_eq!(fetch(&client, path, &[]).await.status(), 401, "{path}");
        assert_eq!(fetch(&client, path, &[key]).await.status(), 200, "{path}");
    }
    for path in ["/page/", "/page/none.js", "/index.html", "//"] {
        assert_eq!(fetch(&client, path, &[]).await.status(), 401, "{path}");
    }
}

#[tokio::test]
async fn it_may_ask_its_own_node_and_no_other_page_may() {
    let options = Options { allowed_hosts: vec!["gpu.lan".to_owned()], ..Options::default() };
    let server = start_with([saying("ok")], options).await;
    let (client, here) = (server.client(), server.address.to_string());
    let ask = async |host: &str, origin: &str| {
        let request = client.request(Method::POST, CHAT).header("host", host);
        let request = request.header("origin", origin).json(&chat(serde_json::json!({})));
        request.send().await.unwrap().status().as_u16()
    };
    assert_eq!(ask(&here, &format!("http://{here}")).await, 200);
    assert_eq!(ask("gpu.lan", "http://gpu.lan").await, 200);
    assert_eq!(ask("GPU.lan:8420", "http://gpu.lan:8420").await, 200);
    // Behind something that speaks HTTPS.
    assert_eq!(ask("gpu.lan", "https://gpu.lan").await, 200);
    // Another program on this machine, and what only begins alike.
    assert_eq!(ask(&here, "http://127.0.0.1:1").await, 403);
    assert_eq!(ask(&here, &format!("http://{here}.evil.example")).await, 403);
    assert_eq!(ask("gpu.lan", "file://gpu.lan").await, 403);
    assert_eq!(ask("gpu.lan", "null").await, 403);
    // A name of its own that leads here.
    assert_eq!(ask("evil.example", "http://evil.example").await, 403);
}
