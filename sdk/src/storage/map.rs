//! A map, sorted by its keys.

use std::borrow::Borrow;
use std::marker::PhantomData;

use super::space::{Kind, Space};
use super::{Key, KeyBytes, Range, Value};
use crate::{Context, Failure, QueryContext};

/// A map from `K` to `V`, sorted by key. Its layout and its failures are those of
/// [`storage`](crate::storage).
#[derive(Debug)]
pub struct Map<K, V> {
    space: Space,
    types: PhantomData<fn() -> (K, V)>,
}

impl<K: Key, V: Value> Map<K, V> {
    /// The map of this name.
    #[must_use]
    pub const fn new(name: &'static str) -> Self {
        Self { space: Space::new(Kind::Map, name), types: PhantomData }
    }

    /// The value of `key`, if it has one.
    pub fn get<Q: KeyBytes + ?Sized>(
        &self,
        context: &QueryContext<'_>,
        key: &Q,
    ) -> Result<Option<V>, Failure>
    where
        K: Borrow<Q>,
    {
        self.space.get(context, &self.space.key(key)?)
    }

    /// Whether `key` has a value. Cheaper than [`get`](Self::get): the value is not read.
    pub fn contains<Q: KeyBytes + ?Sized>(
        &self,
        context: &QueryContext<'_>,
        key: &Q,
    ) -> Result<bool, Failure>
    where
        K: Borrow<Q>,
    {
        Ok(context.contains(&self.space.key(key)?))
    }

    /// Sets `key` to `value`.
    pub fn put<Q: KeyBytes + ?Sized>(
        &self,
        context: &Context<'_>,
        key: &Q,
        value: &V,
    ) -> Result<(), Failure>
    where
        K: Borrow<Q>,
    {
        self.space.put(context, &self.space.key(key)?, value)
    }

    /// Removes `key`; nothing happens if it has no value.
    pub fn remove<Q: KeyBytes + ?Sized>(
        &self,
        context: &Context<'_>,
        key: &Q,
    ) -> Result<(), Failure>
    where
        K: Borrow<Q>,
    {
        context.delete(&self.space.key(key)?);
        Ok(())
    }

    /// A scan in the order of the keys, to be narrowed and iterated over.
    pub fn scan<'c, 'h>(&self, context: &'c QueryContext<'h>) -> Range<'c, 'h, K, V> {
        Range::new(self.space, context)
    }
}
