//! Switching a shard to another plugin: whose business it is to carry the state over, and doing it.
//!
//! The newer of two versions knows both forms of the state, so its `migrate` carries it over in both
//! directions. What it writes goes into the same write as the new record, or nothing does. How much it
//! may do is fixed: while an entry is applied the shard takes no other, and all of it is in memory.

use std::{any::Any, ops::ControlFlow, sync::Arc, time::Instant};

use bytes::Bytes;
use raft_lite::GroupId;
use semver::Version;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::{Machine, Shard, ShardPlugin, executors::ExecutorPool, limits_of};
use crate::{
    storage::{
        Allowance, ApplyState, Overlay, OwnedSnapshot, PluginId, ReadView, ScanBounds, ShardRecord,
        Slot, StorageError, WriteSet,
    },
    wasm::{BatchOutcome, Call, FailureKind, Limits, PluginFailure, PluginModule, Seed},
};

/// Fuel that carrying over a shard may use: some seconds.
const MAX_FUEL: u64 = 4_000_000_000;
/// Rows that it may write.
const MAX_ROWS: u64 = 500_000;
/// Bytes of keys and values that it may write.
const MAX_BYTES: u64 = 256 << 20;

type AnyError = Box<dyn std::error::Error>;

/// What carrying a shard's state over did, or would do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CarriedOver {
    /// Slots with data that `migrate` was asked to carry over.
    pub slots: u64,
    /// Rows it wrote.
    pub rows: u64,
    /// Bytes of keys and values it wrote.
    pub bytes: u64,
    /// Fuel it used.
    pub fuel: u64,
    /// Microseconds it took.
    pub micros: u64,
}

/// Why a shard's state can not be carried over: the same on all replicas.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotCarriedOver {
    /// Another plugin, which does not say what it makes of the state.
    #[error(
        "the shard has data of plugin {from}, and {to} exports no `migrate` to carry it over: \
         activate it on an empty shard, or with force if it can live with that data"
    )]
    Foreign {
        /// The plugin whose data it is.
        from: String,
        /// The plugin that is to be activated.
        to: String,
    },
    /// `migrate` failed.
    #[error("`migrate` of {by} failed in slot {slot}: {failure}")]
    Failed {
        /// Name and version of the plugin that carries over.
        by: String,
        /// The slot.
        slot: u32,
        /// How.
        failure: PluginFailure,
    },
    /// It does too much for one entry.
    #[error(
        "`migrate` of {by} {does} in this shard, allowed are {limit}: split the shard first, or \
         carry values over as they are used"
    )]
    TooMuch {
        /// Name and version of the plugin that carries over.
        by: String,
        /// What it does too much of.
        does: &'static str,
        /// How much it may.
        limit: u64,
    },
}

/// A shard's plugin after a switch, and the hash of what was written for it.
pub(super) struct Switched {
    pub(super) plugin: ShardPlugin,
    pub(super) hash: u64,
}

/// Who carries the state over.
enum Carrier {
    Nobody,
    /// This module, from the other version or to it.
    Module {
        module: PluginModule,
        is_upgrade: bool,
    },
    /// Nobody can; fine if there is no state.
    Missing,
}

impl Machine {
    /// Gets the plugin that a record says runs from now on, waiting for it if need be, and carries
    /// the state over into `writes`.
    ///
    /// # Errors
    /// The outer error stops the replica; the inner one is the entry's outcome.
    pub(super) fn switch(
        &self,
        shard: &Shard,
        after: &ShardRecord,
        state: ApplyState,
        force: bool,
        writes: &mut WriteSet,
    ) -> Result<Result<Switched, NotCarriedOver>, AnyError> {
        let module = self.plugins.wait_for(&after.plugin)?;
        let from = shard.module().ok_or("it has no plugin")?;
        let view = ReadView::Latest(Arc::clone(&self.storage));
        let switch = Switch { record: after, from, to: &module, state, force };
        let mut overlay = Overlay::new(view.clone());
        let carried = match switch.carry_over(&self.appliers, &view, &mut overlay)? {
            Ok(carried) => carried,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let hashes = overlay.take_write_hashes();
        let hash =
            hashes.iter().fold(0, |hash, written| xxh3_64_with_seed(&written.to_le_bytes(), hash));
        overlay.drain_into(writes);
        tracing::info!(
            group = after.group.0,
            "shard {} runs {module} instead of {from} from index {} on; carried over {} rows \
             of {} slots in {} µs",
            after.name,
            state.applied.index,
            carried.rows,
            carried.slots,
            carried.micros
        );
        Ok(Ok(Switched { plugin: self.shard_plugin(module, after.allowance), hash }))
    }

    /// What switching a shard to a plugin would do, tried on the present state.
    ///
    /// # Errors
    /// The outer error is this node's; the inner one is what the switch would end with.
    pub fn try_switch(
        &self,
        group: GroupId,
        plugin: &PluginId,
        allowance: Allowance,
        force: bool,
    ) -> Result<Result<CarriedOver, NotCarriedOver>, AnyError> {
        let module = self.plugins.module(plugin)?;
        let snapshot = Arc::new(OwnedSnapshot::new(Arc::clone(&self.storage)));
        let gone = || format!("this node has no replica of group {group}");
        let shard = self.shard(group).ok_or_else(gone)?;
        if shard.is_switching() {
            return Err("the shard's plugin is being changed".into());
        }
        let from = shard.module().ok_or("it has no plugin")?;
        let record = ShardRecord { allowance, ..shard.record.clone() };
        let view = ReadView::Snapshot(snapshot);
        let switch = Switch { record: &record, from, to: &module, state: shard.applied(), force };
        let mut overlay = Overlay::new(view.clone());
        switch.carry_over(&self.long_readers, &view, &mut overlay)
    }
}

/// A switch of a shard from one plugin to another.
struct Switch<'a> {
    record: &'a ShardRecord,
    from: &'a PluginModule,
    to: &'a PluginModule,
    /// That of the entry which switches.
    state: ApplyState,
    force: bool,
}

impl Switch<'_> {
    /// Carries the state in `view` over; what is written goes into the overlay.
    fn carry_over(
        &self,
        executors: &ExecutorPool,
        view: &ReadView,
        overlay: &mut Overlay,
    ) -> Result<Result<CarriedOver, NotCarriedOver>, AnyError> {
        let started = Instant::now();
        let mut done = CarriedOver::default();
        let (module, is_upgrade) = match self.carrier() {
            Carrier::Module { module, is_upgrade } => (module, is_upgrade),
            Carrier::Missing
                if !self.force
                    && slots_with_data(self.record, view).next().transpose()?.is_some() =>
            {
                let (from, to) = (self.from.to_string(), self.to.to_string());
                return Ok(Err(NotCarriedOver::Foreign { from, to }));
            }
            Carrier::Nobody | Carrier::Missing => return Ok(Ok(done)),
        };
        let request = self.request(is_upgrade);
        for (position, slot) in slots_with_data(self.record, view).enumerate() {
            let slot = slot?;
            let limits = Limits {
                fuel_per_command: MAX_FUEL.saturating_sub(done.fuel),
                ..limits_of(self.record.allowance)
            };
            let call = self.call(slot, position, request.clone());
            let storage = Box::new(std::mem::replace(overlay, Overlay::new(view.clone())));
            let outcome =
                executors.run(|executor| executor.migrate(&module, &limits, call, storage))?;
            let BatchOutcome { mut results, storage, fuel, .. } = outcome;
            let storage: Box<dyn Any> = storage;
            *overlay = *storage.downcast().expect("the executor gives back what it was given");
            let by = module.to_string();
            if let Some(Err(failure)) = results.pop() {
                if failure.kind == FailureKind::OutOfFuel {
                    let (does, limit) = ("uses more fuel", MAX_FUEL);
                    return Ok(Err(NotCarriedOver::TooMuch { by, does, limit }));
                }
                return Ok(Err(NotCarriedOver::Failed { by, slot: slot.0, failure }));
            }
            let (rows, bytes) = overlay.written(slot);
            done.slots += 1;
            done.rows += rows;
            done.bytes += bytes;
            done.fuel += fuel;
            if let Some((does, limit)) = excess(&done) {
                return Ok(Err(NotCarriedOver::TooMuch { by, does, limit }));
            }
        }
        done.micros = started.elapsed().as_micros() as u64;
        Ok(Ok(done))
    }

    /// The newer of two versions carries over, in both directions; of two plugins, the one that
    /// comes.
    fn carrier(&self) -> Carrier {
        let (from, to) = (&self.from.info().manifest, &self.to.info().manifest);
        if self.from.hash() == self.to.hash() {
            return Carrier::Nobody;
        }
        let is_upgrade = from.name != to.name || version(&to.version) >= version(&from.version);
        let module = if is_upgrade { self.to } else { self.from };
        match (module.info().has_migrate, from.name == to.name) {
            (true, _) => Carrier::Module { module: module.clone(), is_upgrade },
            (false, true) => Carrier::Nobody,
            (false, false) => Carrier::Missing,
        }
    }

    /// What `migrate` is asked: see `docs/plugin-abi.md`.
    fn request(&self, is_upgrade: bool) -> Bytes {
        let (from, to) = (&self.from.info().manifest, &self.to.info().manifest);
        let direction = if is_upgrade { "up" } else { "down" };
        format!(
            "direction={direction}\nfrom-name={}\nfrom-version={}\nto-name={}\nto-version={}\n",
            from.name, from.version, to.name, to.version
        )
        .into()
    }

    fn call(&self, slot: Slot, position: usize, payload: Bytes) -> Call {
        let (index, position) = (self.state.applied.index, position as u32);
        Call {
            slot: slot.0,
            index: self.record.shown_index(index),
            time_ms: self.state.time_ms,
            position,
            seed: Seed::At { group: self.record.group.0, index: index.0, position },
            payload,
        }
    }
}

/// The slots of a shard in which its plugin has stored anything.
pub(super) fn slots_with_data(
    record: &ShardRecord,
    view: &ReadView,
) -> impl Iterator<Item = Result<Slot, StorageError>> {
    let slots = record.slots.iter().flat_map(|range| range.slots());
    slots.filter_map(|slot| {
        let mut has_data = false;
        let looked = view.scan(&ScanBounds::new(slot, b"", None, false), &mut |_, _| {
            has_data = true;
            ControlFlow::Break(())
        });
        match looked {
            Ok(()) => has_data.then_some(Ok(slot)),
            Err(error) => Some(Err(error)),
        }
    })
}

/// What a migration has done too much of, and how much it may.
fn excess(done: &CarriedOver) -> Option<(&'static str, u64)> {
    match () {
        () if done.rows > MAX_ROWS => Some(("writes more rows", MAX_ROWS)),
        () if done.bytes > MAX_BYTES => Some(("writes more bytes", MAX_BYTES)),
        () => None,
    }
}

/// A version that the checks let through.
fn version(text: &str) -> Version {
    Version::parse(text).unwrap_or_else(|_| Version::new(0, 0, 0))
}
