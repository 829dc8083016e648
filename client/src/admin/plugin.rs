//! The cluster's plugins.

use raft_kv_proto::v1;
use tonic::transport::Channel;

use super::{Admin, ClusterOperation, operation_in, poll_ms};
use crate::{
    client::admin,
    error::{Error, Result},
    value::IntoBytes,
};

/// What shards are to run, and how they come to it.
///
/// ```no_run
/// use std::time::Duration;
/// use raft_kv_client::{Activation, Change, RaftKVClient};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let client = RaftKVClient::new("http://127.0.0.1:5001").await?;
/// let module = std::fs::read("target/counter.wasm")?;
/// client.admin().upload_plugin(module).await?;
/// let activation =
///     Activation::new("counter", "0.2.0").canary("shard_0", Duration::from_secs(10));
/// client.admin().change(Change::ActivatePlugin(activation)).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Activation {
    /// Name of the plugin.
    pub name: String,
    /// Its version.
    pub version: String,
    /// The shards; none for all.
    pub shards: Vec<String>,
    /// The shard that runs it first, and alone for a while: commands that fail there by the
    /// plugin's fault undo it.
    pub canary: Option<String>,
    /// For how long.
    pub canary_time: std::time::Duration,
    /// Fuel for each command; the default if 0.
    pub fuel: u64,
    /// Bytes of memory of an instance; the default if 0.
    pub memory_bytes: u64,
    /// Even if shards have data of another plugin that nobody carries over.
    pub force: bool,
}

impl Activation {
    /// A version of a plugin, on all shards at once.
    pub fn new(name: impl Into<String>, version: impl Into<String>) -> Self {
        Activation { name: name.into(), version: version.into(), ..Self::default() }
    }

    /// Only these shards.
    #[must_use]
    pub fn shards(mut self, shards: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.shards = shards.into_iter().map(Into::into).collect();
        self
    }

    /// One shard first, and alone for a while.
    #[must_use]
    pub fn canary(mut self, shard: impl Into<String>, time: std::time::Duration) -> Self {
        (self.canary, self.canary_time) = (Some(shard.into()), time);
        self
    }

    /// What each command may use: fuel, and bytes of memory of an instance; 0 for the default.
    #[must_use]
    pub fn limits(mut self, fuel: u64, memory_bytes: u64) -> Self {
        (self.fuel, self.memory_bytes) = (fuel, memory_bytes);
        self
    }

    /// Even if shards have data of another plugin that nobody carries over.
    #[must_use]
    pub fn force(mut self, force: bool) -> Self {
        self.force = force;
        self
    }

    pub(super) fn request(self, dry_run: bool) -> v1::ActivatePluginRequest {
        v1::ActivatePluginRequest {
            name: self.name,
            version: self.version,
            shards: self.shards,
            dry_run,
            canary: self.canary.unwrap_or_default(),
            canary_ms: u64::try_from(self.canary_time.as_millis()).unwrap_or(u64::MAX),
            fuel: self.fuel,
            memory_bytes: self.memory_bytes,
            force: self.force,
            timeout_ms: 0,
            request_id: 0,
        }
    }
}

impl Admin {
    /// Makes a plugin known to the cluster, and waits until every node has it, compiled. Gives its
    /// name, version and hash.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the module is refused, which says why;
    /// [`Error::Conflict`] if there is another one of the same name and version.
    pub async fn upload_plugin(
        &self,
        module: impl IntoBytes,
    ) -> Result<(v1::PluginInfo, ClusterOperation)> {
        let deadline = self.deadline();
        let request = v1::UploadPluginRequest {
            module: module.into_bytes(),
            timeout_ms: poll_ms(self.timeout),
            request_id: rand::random_range(1..=u64::MAX),
        };
        let upload =
            |channel: Channel, request| async move { admin(channel).upload_plugin(request).await };
        // A large one takes a while to be compiled.
        let answer = self.cluster.call_within(self.timeout, request, upload).await?.answer;
        let missing = || Error::BadResponse { message: "without the plugin".to_owned() };
        let plugin = answer.plugin.ok_or_else(missing)?;
        let operation = operation_in(answer.operation)?;
        let ended = Self::success(self.until_ended(operation, deadline).await?)?;
        Ok((plugin, ended))
    }

    /// All plugins that the cluster knows, the nodes that have them, and the shards that run them.
    pub async fn plugins(&self) -> Result<Vec<v1::PluginView>> {
        let list =
            |channel: Channel, request| async move { admin(channel).list_plugins(request).await };
        Ok(self.cluster.call(v1::ListPluginsRequest {}, list).await?.answer.plugins)
    }

    /// What an activation would do to each shard, tried on its present state; nothing changes.
    pub async fn try_activation(&self, activation: Activation) -> Result<Vec<v1::ShardTrial>> {
        let activate = |channel: Channel, request| async move {
            admin(channel).activate_plugin(request).await
        };
        let request = activation.request(true);
        Ok(self.cluster.call_within(self.timeout, request, activate).await?.answer.trials)
    }

    /// Makes the cluster forget a plugin.
    ///
    /// # Errors
    /// [`Error::Conflict`] if a shard runs it, or ran it before what it runs now.
    pub async fn delete_plugin(&self, name: &str, version: &str) -> Result<()> {
        let delete =
            |channel: Channel, request| async move { admin(channel).delete_plugin(request).await };
        let (name, version) = (name.to_owned(), version.to_owned());
        self.cluster.call(v1::DeletePluginRequest { name, version }, delete).await?;
        Ok(())
    }
}
