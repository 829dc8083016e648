//! `/kv`: raw bytes in and out, keys percent-encoded in the path.

use std::sync::Arc;

use axum::{
    Json,
    body::Body,
    extract::{Query, State, rejection::QueryRejection},
    response::{IntoResponse, Response},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri};
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, percent_encode};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{body, error::ApiError};
use crate::service::{
    CallOptions, Consistency, Expected, Pair, PutTerms, ScanRequest, Service, WriteOptions,
};

/// Requests over HTTP are forwarded to wherever they belong, and sent once.
const CALL: CallOptions = CallOptions { direct: false };
pub(super) const WRITE: WriteOptions = WriteOptions { call: CALL, once: None };

/// Carries the version of the value in the body.
const VERSION_HEADER: HeaderName = HeaderName::from_static("raftkv-version");
/// Carries in how many milliseconds the value is gone, if it is to go.
const TTL_HEADER: HeaderName = HeaderName::from_static("raftkv-ttl-ms");
/// Carries a key, percent-encoded, that is too long for a URL: those end at 64 KiB
/// in all, and the server's parser refuses longer ones.
const KEY_HEADER: HeaderName = HeaderName::from_static("raftkv-key");
/// Pairs of a scan unless said otherwise.
const DEFAULT_SCAN_LIMIT: u64 = 1000;
/// Bytes of keys and values after which a scan's answer ends.
const SCAN_ANSWER_BYTES: usize = 16 << 20;

type Parameters<T> = Result<Query<T>, QueryRejection>;

/// The end of a path that increments the key before it. Nothing else is posted below
/// `/kv/`, so that a key which ends like this is none the less addressed by every other
/// method, and incremented by a path that ends so twice.
const INCREMENT: &str = "/increment";

#[derive(Deserialize)]
pub(super) struct PutParameters {
    expected_version: Option<u64>,
    ttl: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct DeleteParameters {
    expected_version: Option<u64>,
}

#[derive(Deserialize)]
pub(super) struct IncrementParameters {
    by: Option<i64>,
}

#[derive(Deserialize)]
pub(super) struct GetParameters {
    #[serde(default)]
    stale: bool,
}

#[derive(Deserialize)]
pub(super) struct ScanParameters {
    limit: Option<u64>,
    #[serde(default)]
    stale: bool,
}

fn parameters<T>(parameters: Parameters<T>) -> Result<T, ApiError> {
    parameters
        .map(|Query(parameters)| parameters)
        .map_err(|error| ApiError::bad_request(error.body_text()))
}

fn consistency(stale: bool) -> Consistency {
    if stale { Consistency::Stale } else { Consistency::Linearizable }
}

/// Bytes from their percent-encoded form, of whatever encoding they are.
fn decode(text: &str, what: &str) -> Result<Bytes, ApiError> {
    let digits =
        |rest: &str| rest.len() >= 2 && rest.as_bytes()[..2].iter().all(u8::is_ascii_hexdigit);
    if text.split('%').skip(1).any(|rest| !digits(rest)) {
        let message =
            format!("the {what} is not percent-encoded: '%' needs two hex digits after it");
        return Err(ApiError::bad_request(message));
    }
    Ok(percent_decode_str(text).collect::<Vec<u8>>().into())
}

/// The key in a request's path or, where that is just `/kv/`, in its header.
fn key_of(uri: &Uri, headers: &HeaderMap) -> Result<Bytes, ApiError> {
    key_at(uri.path().strip_prefix("/kv/").unwrap_or_default(), headers)
}

/// The key that a part of the path, or else the header, stands for.
fn key_at(path: &str, headers: &HeaderMap) -> Result<Bytes, ApiError> {
    match headers.get(KEY_HEADER) {
        None => decode(path, "key"),
        Some(key) if path.is_empty() => {
            let key = key.to_str().map_err(|error| ApiError::bad_request(error.to_string()))?;
            decode(key, "key")
        }
        Some(_) => Err(ApiError::bad_request(format!(
            "there is a key in the path and one in the header {KEY_HEADER}: send one of them"
        ))),
    }
}

/// A parameter that may hold any bytes.
fn bytes_parameter(uri: &Uri, name: &str) -> Result<Bytes, ApiError> {
    let pairs = uri.query().unwrap_or_default().split('&');
    let mut values = pairs.filter_map(|pair| pair.split_once('=')).filter(|(key, _)| *key == name);
    // As in forms, '+' stands for a space.
    values.next().map_or(Ok(Bytes::new()), |(_, value)| decode(&value.replace('+', " "), name))
}

pub(super) async fn put(
    State(service): State<Arc<Service>>,
    uri: Uri,
    headers: HeaderMap,
    query: Parameters<PutParameters>,
    body: Body,
) -> Result<Response, ApiError> {
    let limit = service.limits().value_bytes;
    let value = body::read(body, "value", limit).await?;
    let key = key_of(&uri, &headers)?;
    let PutParameters { expected_version, ttl } = parameters(query)?;
    let ttl_ms = ttl.map(|ttl| ttl_ms(&ttl)).transpose()?;
    let terms = PutTerms { expected: expected(expected_version), ttl_ms };
    let version = service.put(&key, &value, terms, WRITE).await?;
    Ok(Json(json!({"version": version.to_string()})).into_response())
}

fn expected(version: Option<u64>) -> Expected {
    version.map_or(Expected::Any, Expected::Version)
}

/// A time to live, such as `30s`, in milliseconds.
pub(super) fn ttl_ms(text: &str) -> Result<u64, ApiError> {
    let ttl = raft_kv_client::parse_ttl(text);
    let ttl = ttl.map_err(|error| ApiError::bad_request(error.to_string()))?;
    Ok(u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX))
}

pub(super) async fn get(
    State(service): State<Arc<Service>>,
    uri: Uri,
    headers: HeaderMap,
    query: Parameters<GetParameters>,
) -> Result<Response, ApiError> {
    let key = key_of(&uri, &headers)?;
    let consistency = consistency(parameters(query)?.stale);
    match service.get(&key, consistency, CALL).await? {
        Some(found) => {
            let mut response = found.value.into_response();
            response.headers_mut().insert(VERSION_HEADER, HeaderValue::from(found.version));
            if let Some(ttl_ms) = found.ttl_ms {
                response.headers_mut().insert(TTL_HEADER, HeaderValue::from(ttl_ms));
            }
            Ok(response)
        }
        None => {
            let message = "the key does not exist";
            Err(ApiError::new(StatusCode::NOT_FOUND, "not_found", message))
        }
    }
}

pub(super) async fn delete(
    State(service): State<Arc<Service>>,
    uri: Uri,
    headers: HeaderMap,
    query: Parameters<DeleteParameters>,
) -> Result<Response, ApiError> {
    let expected = expected(parameters(query)?.expected_version);
    let existed = service.delete(&key_of(&uri, &headers)?, expected, WRITE).await?;
    Ok(Json(json!({"existed": existed})).into_response())
}

pub(super) async fn increment(
    State(service): State<Arc<Service>>,
    uri: Uri,
    headers: HeaderMap,
    query: Parameters<IncrementParameters>,
) -> Result<Response, ApiError> {
    let path = uri.path().strip_prefix("/kv/").unwrap_or_default();
    let Some(path) = path.strip_suffix(INCREMENT) else {
        let message = "what can be posted here is /kv/{key}/increment: PUT sets a key";
        return Err(ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message));
    };
    let key = key_at(path, &headers)?;
    let by = parameters(query)?.by.unwrap_or(1);
    let number = service.increment(&key, by, WRITE).await?;
    let version = number.version.to_string();
    Ok(Json(json!({"value": number.value.to_string(), "version": version})).into_response())
}

pub(super) async fn scan(
    State(service): State<Arc<Service>>,
    uri: Uri,
    query: Parameters<ScanParameters>,
) -> Result<Response, ApiError> {
    let ScanParameters { limit, stale } = parameters(query)?;
    let request = ScanRequest {
        prefix: bytes_parameter(&uri, "prefix")?,
        after: bytes_parameter(&uri, "cursor")?,
        limit: Some(limit.filter(|limit| *limit != 0).unwrap_or(DEFAULT_SCAN_LIMIT)),
        consistency: consistency(stale),
    };
    let mut scanner = service.scan(request).await?;
    let mut pairs = Vec::new();
    let mut last_key = Bytes::new();
    let mut bytes = 0;
    // Whoever wants more than one answer can hold comes back with the cursor.
    while !scanner.is_done() && bytes < SCAN_ANSWER_BYTES {
        let (rest, page) = service.scan_page(scanner).await?;
        scanner = rest;
        let Some(last) = page.last() else { break };
        last_key = last.key.clone();
        bytes += page.iter().map(|pair| pair.key.len() + pair.value.len()).sum::<usize>();
        pairs.extend(page.iter().map(pair_json));
    }
    let mut body = json!({"pairs": pairs});
    if !last_key.is_empty() && !scanner.is_exhausted() {
        body["cursor"] = percent_encode(&last_key, NON_ALPHANUMERIC).to_string().into();
    }
    Ok(Json(body).into_response())
}

fn pair_json(pair: &Pair) -> Value {
    let mut object = Map::new();
    insert_bytes(&mut object, "key", &pair.key);
    insert_bytes(&mut object, "value", &pair.value);
    object.insert("version".to_owned(), pair.version.to_string().into());
    object.into()
}

/// Text as it is, other bytes as base64 under a name that says so.
pub(super) fn insert_bytes(object: &mut Map<String, Value>, name: &str, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => object.insert(name.to_owned(), text.into()),
        Err(_) => object.insert(format!("{name}_base64"), BASE64_STANDARD.encode(bytes).into()),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uri(text: &str) -> Uri {
        text.parse().unwrap()
    }

    fn key(path: &str) -> Result<Bytes, ApiError> {
        key_of(&uri(path), &HeaderMap::new())
    }

    #[test]
    fn keys_of_any_bytes_come_through_the_path() {
        assert_eq!(key("/kv/a%00%ff%2Fb/c").unwrap(), &b"a\x00\xff/b/c"[..]);
        assert_eq!(key("/kv/").unwrap(), &b""[..]);
        assert_eq!(key("/kv/a+b").unwrap(), &b"a+b"[..]);
    }

    #[test]
    fn a_percent_sign_alone_is_refused() {
        assert!(key("/kv/100%").is_err());
        assert!(key("/kv/%zz").is_err());
    }

    #[test]
    fn a_key_can_come_in_a_header_instead() {
        let headers = HeaderMap::from_iter([(KEY_HEADER, HeaderValue::from_static("a%00b"))]);
        assert_eq!(key_of(&uri("/kv/"), &headers).unwrap(), &b"a\x00b"[..]);
        assert!(key_of(&uri("/kv/c"), &headers).is_err());
    }

    #[test]
    fn parameters_hold_any_bytes() {
        let uri = uri("/kv?limit=3&prefix=%ff%26&cursor=a+b");
        assert_eq!(bytes_parameter(&uri, "prefix").unwrap(), &b"\xff&"[..]);
        assert_eq!(bytes_parameter(&uri, "cursor").unwrap(), &b"a b"[..]);
        assert_eq!(bytes_parameter(&uri, "absent").unwrap(), &b""[..]);
    }
}
