//! One node for all tests of a process that get along with each other.

use std::{
    ops::Deref,
    sync::{Arc, Mutex, PoisonError, Weak},
    thread,
};

use crate::node::Node;

/// A node that others use at the same time: a test keeps to keys of its own.
/// Shows what the node wrote if the test fails.
#[derive(Debug)]
pub struct SharedNode(Arc<Node>);

/// The node that runs with the defaults. It is started by the first test that
/// needs it, and stopped by the last one that lets go of it.
pub fn shared_node() -> SharedNode {
    static CURRENT: Mutex<Weak<Node>> = Mutex::new(Weak::new());
    let mut current = CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
    let node = current.upgrade().unwrap_or_else(|| {
        let node = Arc::new(Node::start());
        *current = Arc::downgrade(&node);
        node
    });
    SharedNode(node)
}

impl Deref for SharedNode {
    type Target = Node;

    fn deref(&self) -> &Node {
        &self.0
    }
}

impl Drop for SharedNode {
    fn drop(&mut self) {
        // The last user's node shows it by itself.
        if thread::panicking() && Arc::strong_count(&self.0) > 1 {
            self.0.show_stderr();
        }
    }
}
