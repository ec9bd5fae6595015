//! Bodies as editors, shells and proxies send them.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::client::{CHAT, chat, json_of};
use crate::double::saying;
use crate::server::start;

async fn send(headers: &[(&str, &str)], body: Vec<u8>) -> (StatusCode, Value) {
    let server = start([saying("ok")]).await;
    let mut request = server.client().request(Method::POST, CHAT).body(body);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = request.send().await.unwrap();
    if response.status() == 415 {
        assert_eq!(response.headers()["accept-encoding"], "identity");
    }
    json_of(response).await
}

fn text() -> String {
    chat(json!({})).to_string()
}

#[tokio::test]
async fn a_byte_order_mark_is_passed_over() {
    assert_eq!(send(&[], format!("\u{feff}{}", text()).into_bytes()).await.0, 200);
    let (status, answer) = send(&[], "\u{feff}".into()).await;
    assert_eq!(status, 400);
    assert!(answer["error"]["message"].as_str().unwrap().contains("not JSON"));
}

#[tokio::test]
async fn any_header_that_says_utf8_will_do() {
    for kind in [
        "application/json",
        "application/json; charset=utf-8",
        "application/json;charset=\"UTF-8\"",
        "text/plain; charset=us-ascii",
        "application/x-www-form-urlencoded",
    ] {
        assert_eq!(send(&[("content-type", kind)], text().into_bytes()).await.0, 200, "{kind}");
    }
    let identity = [("content-encoding", "identity")];
    assert_eq!(send(&identity, text().into_bytes()).await.0, 200);
}

#[tokio::test]
async fn what_is_no_plain_text_is_refused_in_words() {
    let utf16 = |order: fn(u16) -> [u8; 2], mark: bool| {
        let mark = mark.then_some(0xfeff);
        mark.into_iter().chain(text().encode_utf16()).flat_map(order).collect::<Vec<u8>>()
    };
    for (headers, body, said) in [
        (vec![("content-encoding", "gzip")], b"\x1f\x8b\x08".to_vec(), "`gzip`"),
        (vec![("content-encoding", "identity, BR")], text().into_bytes(), "`BR`"),
        (
            vec![("content-type", "application/json; charset=latin1")],
            text().into_bytes(),
            "`latin1`",
        ),
        (vec![], utf16(u16::to_le_bytes, true), "`utf-16`"),
        (vec![], utf16(u16::to_be_bytes, true), "`utf-16`"),
        (vec![], utf16(u16::to_le_bytes, false), "`utf-16`"),
        (vec![], utf16(u16::to_be_bytes, false), "`utf-16`"),
    ] {
        let (status, answer) = send(&headers, body).await;
        assert_eq!(status, 415, "{headers:?}: {answer}");
        assert_eq!(answer["error"]["code"], "unsupported_media_type");
        assert!(answer["error"]["message"].as_str().unwrap().contains(said), "{answer}");
    }
}
