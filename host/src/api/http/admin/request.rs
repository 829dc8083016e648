//! What requests to `/admin` say: names in the path, `?timeout=` and `?force=`, and a JSON
//! object in the body, whatever `Content-Type` says of it.

use std::time::Duration;

use axum::{
    extract::{FromRequest, FromRequestParts, Path, Query, Request},
    http::request::Parts,
};
use serde::{Deserialize, de::DeserializeOwned};

use super::super::{super::operation::LONGEST_WAIT, body, error::ApiError};

/// Longest body.
const MAX_BODY_BYTES: usize = 1 << 20;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CreateShard {
    pub(super) shard_id: String,
    /// The cluster chooses if there are none.
    #[serde(default)]
    pub(super) nodes: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Migrate {
    pub(super) from: String,
    pub(super) to: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Split {
    pub(super) new_shards: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Merge {
    pub(super) sources: Vec<String>,
    pub(super) target: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Transfer {
    pub(super) to: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AddReplica {
    pub(super) node: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct JoinNode {
    pub(super) node_id: String,
    pub(super) address: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Balancer {
    pub(super) enabled: bool,
}

/// A JSON object in the body.
pub(super) struct Sent<T>(pub(super) T);

impl<T: DeserializeOwned, S: Sync> FromRequest<S> for Sent<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let bytes = body::read(request.into_body(), "body", MAX_BODY_BYTES).await?;
        parse(&bytes).map(Sent)
    }
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let first = bytes.iter().find(|byte| !byte.is_ascii_whitespace());
    match first {
        // A list of a struct's fields in order would pass for it.
        Some(b'[') => Err(ApiError::bad_request("the body is a JSON list: send an object")),
        Some(_) => serde_json::from_slice(bytes).map_err(|error| {
            ApiError::bad_request(format!("the body is not the JSON object that is due: {error}"))
        }),
        None => Err(ApiError::bad_request("the body is empty: send a JSON object")),
    }
}

/// What stands in the path, percent-decoded.
pub(super) struct InPath<T>(pub(super) T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for InPath<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let path = Path::<T>::from_request_parts(parts, state).await;
        let Path(found) = path.map_err(|error| ApiError::bad_request(error.body_text()))?;
        Ok(InPath(found))
    }
}

/// How long to wait for the end of an operation, if the request says so.
pub(super) struct Wait(pub(super) Option<Duration>);

impl<S: Sync> FromRequestParts<S> for Wait {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        #[derive(Deserialize)]
        struct Parameters {
            timeout: Option<String>,
        }
        let Parameters { timeout } = parameters(parts)?;
        timeout.map(|text| time(&text)).transpose().map(Wait)
    }
}

/// Whether a shard is to be deleted with what is in it.
pub(super) struct Force(pub(super) bool);

impl<S: Sync> FromRequestParts<S> for Force {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        #[derive(Deserialize)]
        struct Parameters {
            #[serde(default)]
            force: bool,
        }
        let Parameters { force } = parameters(parts)?;
        Ok(Force(force))
    }
}

fn parameters<T: DeserializeOwned>(parts: &Parts) -> Result<T, ApiError> {
    let parameters = Query::try_from_uri(&parts.uri);
    let Query(found) = parameters.map_err(|error| ApiError::bad_request(error.body_text()))?;
    Ok(found)
}

/// Reads a time: seconds, or a number and its unit.
fn time(text: &str) -> Result<Duration, ApiError> {
    let unit = text.trim_start_matches(|c: char| c.is_ascii_digit());
    let number = &text[..text.len() - unit.len()];
    let milliseconds = match unit {
        "ms" => Some(1),
        "" | "s" => Some(1_000),
        "m" => Some(60_000),
        _ => None,
    };
    let time =
        || Some(Duration::from_millis(number.parse::<u64>().ok()?.checked_mul(milliseconds?)?));
    time().filter(|time| *time <= LONGEST_WAIT).ok_or_else(|| {
        ApiError::bad_request(format!(
            "timeout: {text:?} is not a time of at most 24 hours: give seconds, such as 30, or a \
             number with its unit, such as 500ms, 2s or 1m"
        ))
    })
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    fn message(error: ApiError) -> String {
        format!("{error:?}")
    }

    async fn sent<T: DeserializeOwned>(body: impl Into<Body>) -> Result<T, String> {
        let request = Request::post("/admin/shard").body(body.into()).unwrap();
        let sent = Sent::<T>::from_request(request, &()).await;
        sent.map(|Sent(body)| body).map_err(message)
    }

    fn parts(uri: &str) -> Parts {
        Request::get(uri).body(()).unwrap().into_parts().0
    }

    #[test]
    fn a_time_is_in_seconds_or_in_its_unit() {
        for (text, milliseconds) in [
            ("30", 30_000),
            ("0", 0),
            ("500ms", 500),
            ("2s", 2_000),
            ("1m", 60_000),
            ("1440m", 86_400_000),
        ] {
            assert_eq!(time(text).unwrap(), Duration::from_millis(milliseconds), "{text}");
        }
    }

    #[test]
    fn what_is_no_time_is_refused_by_name() {
        for text in [
            "",
            "s",
            "ms",
            "-1",
            "+1",
            "1.5",
            "1h",
            "1 s",
            "2S",
            "1441m",
            "٣",
            "99999999999999999999",
            "18446744073709551615m",
        ] {
            let message = message(time(text).unwrap_err());
            assert!(message.contains("timeout: "), "{text}: {message}");
        }
    }

    #[tokio::test]
    async fn parameters_are_found_among_others() {
        let mut parts = parts("/admin/shard/s?other=1&force=true&timeout=2s");
        let Wait(time) = Wait::from_request_parts(&mut parts, &()).await.unwrap();
        assert_eq!(time, Some(Duration::from_secs(2)));
        assert!(Force::from_request_parts(&mut parts, &()).await.unwrap().0);
        let mut parts = self::parts("/admin/shard/s");
        assert_eq!(Wait::from_request_parts(&mut parts, &()).await.unwrap().0, None);
        assert!(!Force::from_request_parts(&mut parts, &()).await.unwrap().0);
        let mut parts = self::parts("/admin/shard/s?force=perhaps&timeout=soon");
        assert!(Wait::from_request_parts(&mut parts, &()).await.is_err());
        assert!(Force::from_request_parts(&mut parts, &()).await.is_err());
    }

    #[tokio::test]
    async fn a_body_needs_no_content_type() {
        let Migrate { from, to } = sent(r#"{"from": "node1", "to": "node4"}"#).await.unwrap();
        assert_eq!((from.as_str(), to.as_str()), ("node1", "node4"));
        let CreateShard { shard_id, nodes } = sent(r#" {"shard_id": "a"} "#).await.unwrap();
        assert_eq!((shard_id.as_str(), nodes.len()), ("a", 0));
    }

    #[tokio::test]
    async fn a_wrong_body_is_refused_with_what_and_where() {
        for (body, said) in [
            (r#"{"from": "node1"}"#, "missing field `to` at line 1 column 17"),
            (r#"{"from": "node1", "too": "node2"}"#, "unknown field `too`"),
            (r#"{"from": "a", "from": "b", "to": "c"}"#, "duplicate field `from`"),
            ("{\n\"from\": node1}", "expected ident at line 2 column 10"),
            (r#"{"from": 1, "to": "b"}"#, "invalid type: integer `1`, expected a string"),
            (r#"{"from": "a", "to": "b"} x"#, "trailing characters at line 1 column 26"),
            (r#"["node1", "node2"]"#, "list"),
            (r#""node1""#, "invalid type: string"),
            (" \n", "empty"),
        ] {
            let message = sent::<Migrate>(body).await.unwrap_err();
            assert!(message.contains("400") && message.contains(said), "{body}: {message}");
        }
    }

    #[tokio::test]
    async fn a_body_that_is_too_long_is_refused() {
        let name = "x".repeat(MAX_BODY_BYTES);
        let message = sent::<AddReplica>(format!(r#"{{"node": "{name}"}}"#)).await.unwrap_err();
        assert!(message.contains("413"), "{message}");
    }
}
