//! `/kv-atomic`: many operations at once, all of them or none, in JSON.
//!
//! A key or value that is no text is given as base64 under `key_base64` or
//! `value_base64`, as it is in the answers of `/kv`. Versions are strings or numbers.

use std::sync::Arc;

use axum::{
    Json,
    body::Body,
    extract::State,
    response::{IntoResponse, Response},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{
    body,
    error::ApiError,
    kv::{WRITE, insert_bytes, ttl_ms},
};
use crate::service::{
    AtomicReply, AtomicRequest, Compare, Condition, Consistency, Expected, Operation,
    OperationReply, PutTerms, Service, Versioned,
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    #[serde(default)]
    compares: Vec<AskedCompare>,
    operations: Vec<AskedOperation>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AskedCompare {
    key: Option<String>,
    key_base64: Option<String>,
    version: Option<Version>,
    exists: Option<bool>,
}

/// A version: a number, or its text, for those whose numbers are not that long.
#[derive(Deserialize)]
#[serde(untagged)]
enum Version {
    Number(u64),
    Text(String),
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum AskedOperation {
    Put(AskedPut),
    Get(AskedKey),
    Delete(AskedKey),
    Increment(AskedIncrement),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AskedPut {
    key: Option<String>,
    key_base64: Option<String>,
    value: Option<String>,
    value_base64: Option<String>,
    ttl: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AskedKey {
    key: Option<String>,
    key_base64: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AskedIncrement {
    key: Option<String>,
    key_base64: Option<String>,
    by: Option<i64>,
}

pub(super) async fn atomic(
    State(service): State<Arc<Service>>,
    body: Body,
) -> Result<Response, ApiError> {
    let limits = service.limits();
    // Base64 takes a third more, escapes within JSON up to six times as much.
    let limit = 6 * (limits.key_bytes + limits.value_bytes);
    let body = body::read(body, "request", limit).await?;
    let asked: Asked = serde_json::from_slice(&body)
        .map_err(|error| ApiError::bad_request(format!("the request makes no sense: {error}")))?;
    let compares = asked.compares.into_iter().enumerate();
    let compares = compares.map(|(place, c)| compare(c).map_err(|e| e.at("compare", place)));
    let operations = asked.operations.into_iter().enumerate();
    let operations =
        operations.map(|(place, o)| operation(o).map_err(|e| e.at("operation", place)));
    let request = AtomicRequest {
        compares: compares.collect::<Result<_, _>>()?,
        operations: operations.collect::<Result<_, _>>()?,
    };
    let answer = match service.atomic(request, WRITE).await? {
        AtomicReply::Held(replies) => {
            let results: Vec<Value> = replies.into_iter().map(result).collect();
            json!({"held": true, "results": results})
        }
        AtomicReply::Failed { compare, version } => {
            let failed = json!({"compare": compare, "version": version.to_string()});
            json!({"held": false, "failed": failed})
        }
    };
    Ok(Json(answer).into_response())
}

fn compare(asked: AskedCompare) -> Result<Compare, ApiError> {
    let key = bytes("key", asked.key, asked.key_base64)?;
    let condition = match (asked.version, asked.exists) {
        (Some(version), None) => Condition::Version(number(version)?),
        (None, Some(true)) => Condition::Exists,
        (None, Some(false)) => Condition::Version(0),
        _ => return Err(ApiError::bad_request("it has either a `version` or `exists`")),
    };
    Ok(Compare { key, condition })
}

fn operation(asked: AskedOperation) -> Result<Operation, ApiError> {
    let once = None;
    Ok(match asked {
        AskedOperation::Put(put) => {
            let ttl_ms = put.ttl.map(|ttl| ttl_ms(&ttl)).transpose()?;
            Operation::Put {
                key: bytes("key", put.key, put.key_base64)?,
                value: bytes("value", put.value, put.value_base64)?,
                terms: PutTerms { ttl_ms, ..PutTerms::default() },
                once,
            }
        }
        AskedOperation::Get(AskedKey { key, key_base64 }) => {
            let key = bytes("key", key, key_base64)?;
            Operation::Get { key, consistency: Consistency::Linearizable }
        }
        AskedOperation::Delete(AskedKey { key, key_base64 }) => {
            let key = bytes("key", key, key_base64)?;
            Operation::Delete { key, expected: Expected::Any, once }
        }
        AskedOperation::Increment(AskedIncrement { key, key_base64, by }) => {
            let key = bytes("key", key, key_base64)?;
            Operation::Increment { key, delta: by.unwrap_or(1), once }
        }
    })
}

fn result(reply: OperationReply) -> Value {
    match reply {
        OperationReply::Put(version) => json!({"version": version.to_string()}),
        OperationReply::Get(None) => json!({"found": false}),
        OperationReply::Get(Some(Versioned { value, version, ttl_ms })) => {
            let mut found = Map::from_iter([("found".to_owned(), true.into())]);
            insert_bytes(&mut found, "value", &value);
            found.insert("version".to_owned(), version.to_string().into());
            if let Some(ttl_ms) = ttl_ms {
                found.insert("ttl_ms".to_owned(), ttl_ms.into());
            }
            found.into()
        }
        OperationReply::Delete(existed) => json!({"existed": existed}),
        OperationReply::Increment(number) => {
            json!({"value": number.value.to_string(), "version": number.version.to_string()})
        }
    }
}

/// Bytes that are given as text or as base64.
fn bytes(name: &str, text: Option<String>, base64: Option<String>) -> Result<Bytes, ApiError> {
    match (text, base64) {
        (Some(text), None) => Ok(text.into()),
        (None, Some(base64)) => match BASE64_STANDARD.decode(base64) {
            Ok(bytes) => Ok(bytes.into()),
            Err(error) => {
                Err(ApiError::bad_request(format!("`{name}_base64` is no base64: {error}")))
            }
        },
        _ => Err(ApiError::bad_request(format!("it has either a `{name}` or a `{name}_base64`"))),
    }
}

fn number(version: Version) -> Result<u64, ApiError> {
    match version {
        Version::Number(version) => Ok(version),
        Version::Text(text) => {
            text.parse().map_err(|_| ApiError::bad_request(format!("{text:?} is no version")))
        }
    }
}
