//! A fixed number of plugin executors, shared by the threads of one kind.

use parking_lot::{Condvar, Mutex};

use crate::wasm::{Executor, HostError, PluginEngine, Reuse};

/// Executors made as needed, up to a limit; who finds none waits for one.
pub(super) struct ExecutorPool {
    engine: PluginEngine,
    state: Mutex<PoolState>,
    returned: Condvar,
}

struct PoolState {
    idle: Vec<Executor>,
    /// How many may still be made.
    unmade: usize,
}

impl ExecutorPool {
    /// A pool of at most `max` executors.
    pub(super) fn new(engine: PluginEngine, max: usize) -> Self {
        let state = Mutex::new(PoolState { idle: Vec::new(), unmade: max });
        ExecutorPool { engine, state, returned: Condvar::new() }
    }

    /// Runs `work` with an executor.
    pub(super) fn run<T>(
        &self,
        work: impl FnOnce(&mut Executor) -> Result<T, HostError>,
    ) -> Result<T, HostError> {
        let mut executor = self.take()?;
        let result = work(&mut executor);
        self.state.lock().idle.push(executor);
        self.returned.notify_one();
        result
    }

    fn take(&self) -> Result<Executor, HostError> {
        let mut state = self.state.lock();
        loop {
            if let Some(executor) = state.idle.pop() {
                return Ok(executor);
            }
            if state.unmade > 0 {
                state.unmade -= 1;
                drop(state);
                return Executor::new(&self.engine, Reuse::Keep);
            }
            self.returned.wait(&mut state);
        }
    }
}
