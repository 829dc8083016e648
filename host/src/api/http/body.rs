//! Bodies of requests, bounded.

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http::StatusCode;
use http_body_util::BodyExt;

use super::error::ApiError;

/// Bytes of a refused body that are read all the same, so that the connection
/// stays usable.
const DISCARD_LIMIT: usize = 256 << 20;

/// Reads a body of at most `limit` bytes, which is called `what`. A longer one is
/// read to its end and dropped, within reason, before it is refused.
pub(super) async fn read(mut body: Body, what: &str, limit: usize) -> Result<Bytes, ApiError> {
    let mut kept = BytesMut::new();
    let mut length = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| ApiError::bad_request(error.to_string()))?;
        let Ok(data) = frame.into_data() else { continue };
        length += data.len();
        if length <= limit {
            kept.extend_from_slice(&data);
        } else if length > limit + DISCARD_LIMIT {
            break;
        }
    }
    if length <= limit {
        return Ok(kept.freeze());
    }
    let message = format!("the {what} has {length} bytes or more, the limit is {limit} bytes");
    Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "invalid_argument", message))
}
