//! Commands about plugins, and for them.

use std::{fs, io::Write};

use raft_kv_client::{Activation, Change, ShardTrial};

use super::{
    Session,
    cluster::{now, with_progress},
    read_stdin, write_json,
};
use crate::{
    Failure,
    args::{Call, Output, PluginCommand},
    json, text,
};

impl<W: Write> Session<'_, W> {
    pub(super) async fn plugin(self, command: PluginCommand) -> Result<(), Failure> {
        match command {
            PluginCommand::List => {
                let plugins = self.admin().await?.plugins().await?;
                let text = text::plugin::list(&plugins, now());
                self.print(&text, plugins.iter().map(json::plugin::view))
            }
            PluginCommand::Status { name } => {
                let mut plugins = self.admin().await?.plugins().await?;
                if let Some(name) = name {
                    plugins.retain(|plugin| plugin.name == name);
                    if plugins.is_empty() {
                        return Err(Failure::NoSuchPlugin(name));
                    }
                }
                let text = text::plugin::status(&plugins, now());
                self.print(&text, plugins.iter().map(json::plugin::view))
            }
            PluginCommand::Upload { file } => {
                let module = fs::read(&file).map_err(|error| {
                    Failure::BadUsage(format!("cannot read {}: {error}", file.display()))
                })?;
                let (admin, progress) = with_progress(self.admin().await?);
                let uploaded = admin.upload_plugin(module).await;
                progress.end();
                match uploaded {
                    Ok((plugin, operation)) => {
                        let text = format!(
                            "plugin {} {} is on all nodes (sha256 {})\n",
                            plugin.name, plugin.version, plugin.sha256
                        );
                        self.print(&text, [json::plugin::uploaded(&plugin, &operation)])
                    }
                    Err(error) => self.ended(Err(error)),
                }
            }
            PluginCommand::Activate(activate) => {
                let mut activation = Activation::new(activate.name, activate.version)
                    .shards(activate.shards)
                    .limits(activate.fuel, activate.memory_bytes)
                    .force(activate.force);
                if activate.dry_run {
                    return self.try_activation(activation).await;
                }
                if let Some(shard) = activate.canary {
                    activation = activation.canary(shard, activate.canary_seconds);
                }
                self.change(Change::ActivatePlugin(activation)).await
            }
            PluginCommand::Rollback { name, shards, force } => {
                self.change(Change::RollBackPlugin { name, shards, force }).await
            }
            PluginCommand::Delete { name, version } => {
                self.admin().await?.delete_plugin(&name, &version).await?;
                let text = format!("plugin {name} {version} is forgotten\n");
                self.print(&text, [json::plugin::deleted(&name, &version)])
            }
        }
    }

    async fn try_activation(self, activation: Activation) -> Result<(), Failure> {
        let trials = self.admin().await?.try_activation(activation).await?;
        let refused: Vec<ShardTrial> =
            trials.iter().filter(|trial| !trial.refusal.is_empty()).cloned().collect();
        self.print(&text::plugin::trials(&trials), trials.iter().map(json::plugin::trial))?;
        match refused.first() {
            Some(trial) => Err(Failure::WouldBeRefused(trial.shard.clone(), trial.refusal.clone())),
            None => Ok(()),
        }
    }

    pub(super) async fn call(self, call: Call) -> Result<(), Failure> {
        let is_query = call.query;
        let (key, command) = call.parts();
        let key = key.bytes()?;
        let command = match command {
            Some(command) => command,
            None => read_stdin()?,
        };
        let client = self.builder.connect().await?;
        let response = match is_query {
            true => client.query(&key, command).await?,
            false => client.apply(&key, command).await?,
        };
        match self.output {
            Output::Text => {
                self.out.write_all(&response)?;
                self.out.write_all(b"\n")?;
            }
            Output::Json => write_json(self.out, &json::plugin::response(&key, &response))?,
        }
        Ok(())
    }
}
