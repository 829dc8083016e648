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

    /// Runs `work` with an executor. One that is in use when `work` panics is not
    /// used again.
    pub(super) fn run<T>(
        &self,
        work: impl FnOnce(&mut Executor) -> Result<T, HostError>,
    ) -> Result<T, HostError> {
        let mut place = self.take();
        let mut executor = match place.executor.take() {
            Some(executor) => executor,
            None => Executor::new(&self.engine, Reuse::Keep)?,
        };
        let result = work(&mut executor);
        place.executor = Some(executor);
        result
    }

    /// Waits for one of the places.
    fn take(&self) -> Place<'_> {
        let mut state = self.state.lock();
        loop {
            let executor = state.idle.pop();
            if executor.is_some() {
                return Place { pool: self, executor };
            }
            if state.unmade > 0 {
                state.unmade -= 1;
                return Place { pool: self, executor };
            }
            self.returned.wait(&mut state);
        }
    }
}

/// The right to use one executor; goes back to the pool, with the executor if it
/// is whole.
struct Place<'a> {
    pool: &'a ExecutorPool,
    executor: Option<Executor>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut state = self.pool.state.lock();
        match self.executor.take() {
            Some(executor) => state.idle.push(executor),
            None => state.unmade += 1,
        }
        drop(state);
        self.pool.returned.notify_one();
    }
}
