//! `/admin/plugin`: modules come in, shards are switched to them and back.

use std::sync::Arc;

use axum::{
    Json, Router,
    body::Body,
    extract::State,
    response::IntoResponse,
    routing::{delete, get, post},
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Answer, At, DEFAULT_WAIT, carry_out,
    request::{InPath, Sent, Wait},
    standing,
};
use crate::{
    api::{
        http::{body, error::ApiError},
        operation,
    },
    service::{Activation, MAX_MODULE_BYTES, OperationRequest, Service, ServiceError},
};

pub(super) fn router() -> Router<Arc<Service>> {
    Router::new()
        .route("/admin/plugin", get(plugins).post(upload))
        .route("/admin/plugin/{name}", get(plugin))
        .route("/admin/plugin/{name}/activate", post(activate))
        .route("/admin/plugin/{name}/rollback", post(roll_back))
        .route("/admin/plugin/{name}/{version}", delete(forget))
}

/// Which shards: `"all"`, or a list of names.
#[derive(Debug, Default, Deserialize)]
#[serde(try_from = "Value")]
struct Shards(Vec<String>);

impl TryFrom<Value> for Shards {
    type Error = String;

    fn try_from(value: Value) -> Result<Self, String> {
        let wrong = || "shards has to be \"all\" or a list of names".to_owned();
        match value {
            Value::String(all) if all == "all" => Ok(Shards(Vec::new())),
            Value::Array(names) if !names.is_empty() => {
                let name = |name: Value| name.as_str().map(str::to_owned).ok_or_else(wrong);
                names.into_iter().map(name).collect::<Result<_, _>>().map(Shards)
            }
            _ => Err(wrong()),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Activate {
    version: String,
    shards: Shards,
    #[serde(default)]
    dry_run: bool,
    /// The shard that is to run it first.
    #[serde(default)]
    canary: String,
    #[serde(default)]
    canary_seconds: u64,
    #[serde(default)]
    fuel: u64,
    #[serde(default)]
    memory_bytes: u64,
    #[serde(default)]
    force: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RollBack {
    #[serde(default)]
    shards: Shards,
    #[serde(default)]
    force: bool,
}

async fn plugins(State(service): At) -> Answer {
    Ok(Json(json!({"plugins": service.plugin_views()})).into_response())
}

async fn plugin(State(service): At, InPath(name): InPath<String>) -> Answer {
    let views = service.plugin_views().into_iter();
    let versions: Vec<_> = views.filter(|plugin| plugin.name == name).collect();
    match versions.is_empty() {
        true => Err(ServiceError::NotFound { what: "plugin".to_owned(), name }.into()),
        false => Ok(Json(json!({"name": name, "versions": versions})).into_response()),
    }
}

async fn upload(State(service): At, Wait(within): Wait, module: Body) -> Answer {
    let module = body::read(module, "module", MAX_MODULE_BYTES).await?;
    if module.is_empty() {
        return Err(ApiError::bad_request("the body is empty: send the module's bytes"));
    }
    let within = within.unwrap_or(DEFAULT_WAIT);
    let (operation, plugin) = operation::upload(&service, module, 0, within).await?;
    let (status, operation) = standing(operation)?;
    Ok((status, Json(json!({"plugin": plugin, "operation": operation}))).into_response())
}

async fn activate(
    State(service): At,
    InPath(name): InPath<String>,
    wait: Wait,
    Sent(body): Sent<Activate>,
) -> Answer {
    let Shards(shards) = body.shards;
    let activation = Activation {
        name,
        version: body.version,
        shards,
        canary: body.canary,
        canary_ms: body.canary_seconds.saturating_mul(1_000),
        fuel: body.fuel,
        memory_bytes: body.memory_bytes,
        force: body.force,
    };
    if body.dry_run {
        let trials = service.try_activation(activation).await?;
        return Ok(Json(json!({"trials": trials})).into_response());
    }
    carry_out(&service, OperationRequest::ActivatePlugin(activation), wait).await
}

async fn roll_back(
    State(service): At,
    InPath(name): InPath<String>,
    wait: Wait,
    Sent(RollBack { shards: Shards(shards), force }): Sent<RollBack>,
) -> Answer {
    carry_out(&service, OperationRequest::RollBackPlugin { name, shards, force }, wait).await
}

async fn forget(State(service): At, InPath((name, version)): InPath<(String, String)>) -> Answer {
    service.delete_plugin(&name, &version).await?;
    Ok(Json(json!({"name": name, "version": version, "deleted": true})).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_all_or_named() {
        let read = |text: &str| serde_json::from_str::<Shards>(text).map(|Shards(names)| names);
        assert_eq!(read("\"all\"").unwrap(), Vec::<String>::new());
        assert_eq!(read(r#"["a", "b"]"#).unwrap(), ["a", "b"]);
        for wrong in ["\"some\"", "[]", "[1]", "null", "{}"] {
            let message = read(wrong).unwrap_err().to_string();
            assert!(message.contains("\"all\" or a list"), "{wrong}: {message}");
        }
    }
}
