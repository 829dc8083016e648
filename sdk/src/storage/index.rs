//! An ordered index: which items have which sort key.

use std::borrow::Borrow;
use std::marker::PhantomData;

use super::space::{Kind, Space};
use super::{Key, KeyBytes, Range};
use crate::{Context, Failure, QueryContext};

/// Items of type `T` sorted by a key `K`, then by themselves: a set of pairs, of which an item may
/// have several. It knows nothing of the map it belongs to; whoever changes one changes the other.
///
/// Its layout and its failures are those of [`storage`](crate::storage).
#[derive(Debug)]
pub struct Index<K, T> {
    space: Space,
    types: PhantomData<fn() -> (K, T)>,
}

impl<K: Key, T: Key> Index<K, T> {
    /// The index of this name.
    #[must_use]
    pub const fn new(name: &'static str) -> Self {
        Self { space: Space::new(Kind::Index, name), types: PhantomData }
    }

    /// Puts `item` at `key`; nothing happens if it is there.
    pub fn insert<Q, U>(&self, context: &Context<'_>, key: &Q, item: &U) -> Result<(), Failure>
    where
        K: Borrow<Q>,
        T: Borrow<U>,
        Q: KeyBytes + ?Sized,
        U: KeyBytes + ?Sized,
    {
        context.put(&self.space.key(&(key, item))?, b"");
        Ok(())
    }

    /// Takes `item` from `key`; nothing happens if it is not there.
    pub fn remove<Q, U>(&self, context: &Context<'_>, key: &Q, item: &U) -> Result<(), Failure>
    where
        K: Borrow<Q>,
        T: Borrow<U>,
        Q: KeyBytes + ?Sized,
        U: KeyBytes + ?Sized,
    {
        context.delete(&self.space.key(&(key, item))?);
        Ok(())
    }

    /// Whether `item` is at `key`.
    pub fn contains<Q, U>(
        &self,
        context: &QueryContext<'_>,
        key: &Q,
        item: &U,
    ) -> Result<bool, Failure>
    where
        K: Borrow<Q>,
        T: Borrow<U>,
        Q: KeyBytes + ?Sized,
        U: KeyBytes + ?Sized,
    {
        Ok(context.contains(&self.space.key(&(key, item))?))
    }

    /// A scan in the order of the sort keys, to be narrowed by them; [`keys`](Range::keys) gives the
    /// pairs.
    pub fn scan<'c, 'h>(&self, context: &'c QueryContext<'h>) -> Range<'c, 'h, (K, T), ()> {
        Range::new(self.space, context)
    }
}
