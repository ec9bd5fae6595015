//! The page at `/`: a fixed set of files within the binary, and what browsers may do with them.
//!
//! They hold nothing of the cluster's, so no key is demanded for them; what the page then asks for demands
//! it. Its policy has it load from and speak to this node alone.

use std::hash::{DefaultHasher, Hash, Hasher};

use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::error::ApiError;

struct File {
    path: &'static str,
    kind: &'static str,
    text: &'static str,
}

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

macro_rules! file {
    ($path:literal, $name:literal, $kind:expr) => {
        File { path: $path, kind: $kind, text: include_str!(concat!("../page/", $name)) }
    };
}

const FILES: &[File] = &[
    file!("/", "index.html", HTML),
    file!("/page/page.css", "page.css", CSS),
    file!("/page/icon.svg", "icon.svg", SVG),
    file!("/page/chat.js", "chat.js", SCRIPT),
    file!("/page/elements.js", "elements.js", SCRIPT),
    file!("/page/layout.js", "layout.js", SCRIPT),
    file!("/page/live.js", "live.js", SCRIPT),
    file!("/page/main.js", "main.js", SCRIPT),
    file!("/page/models.js", "models.js", SCRIPT),
    file!("/page/nodes.js", "nodes.js", SCRIPT),
    file!("/page/picture.js", "picture.js", SCRIPT),
    file!("/page/rates.js", "rates.js", SCRIPT),
    file!("/page/server.js", "server.js", SCRIPT),
    file!("/page/timeline.js", "timeline.js", SCRIPT),
    file!("/page/words.js", "words.js", SCRIPT),
];

/// No script or style within the page's own text, nothing of another origin, no frame around it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Whether a file of the page is at this path.
pub(super) fn is_page(path: &str) -> bool {
    FILES.iter().any(|file| file.path == path)
}

/// The paths of all files.
pub(super) fn paths() -> impl Iterator<Item = &'static str> {
    FILES.iter().map(|file| file.path)
}

/// A file, or 304 to whoever has it.
pub(super) async fn file(request: Request) -> Response {
    let path = request.uri().path();
    let Some(file) = FILES.iter().find(|file| file.path == path) else {
        return ApiError::internal(format!("the page has no {path}")).into_response();
    };
    let tag = tag(file.text);
    let fixed = [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        // Asked again each time, since the next version of the node has others.
        (header::CACHE_CONTROL, "no-cache"),
    ];
    let mut headers: HeaderMap =
        fixed.into_iter().map(|(name, value)| (name, HeaderValue::from_static(value))).collect();
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        headers.insert(header::ETAG, tag);
    }
    if has(request.headers(), &tag) {
        return (StatusCode::NOT_MODIFIED, headers).into_response();
    }
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(file.kind));
    (headers, file.text).into_response()
}

/// Tells versions of a file apart; nobody gains by making two alike.
fn tag(text: &str) -> String {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    format!("\"{:016x}\"", hasher.finish())
}

fn has(headers: &HeaderMap, tag: &str) -> bool {
    let known = headers.get_all(header::IF_NONE_MATCH).iter();
    known
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|known| known.trim().trim_start_matches("W/") == tag)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;

    use super::*;

    #[test]
    fn every_file_of_the_page_is_served_and_within_the_policy() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("page");
        let there = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name());
        let there: BTreeSet<String> = there.map(|name| name.into_string().unwrap()).collect();
        let served = FILES.iter().map(|file| match file.path {
            "/" => "index.html".to_owned(),
            path => path.trim_start_matches("/page/").to_owned(),
        });
        assert_eq!(served.collect::<BTreeSet<_>>(), there);
        for file in FILES {
            for foreign in ["http://", "https://", " style=", "innerHTML", "localStorage", "eval("]
            {
                // The names of XML's languages are no requests.
                let text = file.text.replace("http://www.w3.org/2000/svg", "");
                assert!(!text.contains(foreign), "{}: {foreign}", file.path);
            }
            for import in file.text.lines().filter(|line| line.starts_with("import ")) {
                let (_, from) = import.rsplit_once(" from \"./").unwrap();
                assert!(is_page(&format!("/page/{}", from.trim_end_matches("\";"))), "{import}");
            }
        }
    }

    #[test]
    fn whoever_has_a_file_is_known_by_its_tag() {
        let headers = |value: &'static str| {
            HeaderMap::from_iter([(header::IF_NONE_MATCH, HeaderValue::from_static(value))])
        };
        assert!(has(&headers("\"a\", W/\"b\""), "\"b\"") && !has(&headers("\"a\""), "\"b\""));
        assert_ne!(tag("a"), tag("b"));
    }
}
