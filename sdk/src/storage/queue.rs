//! A queue: what went in first comes out first.

use std::marker::PhantomData;

use super::Value;
use super::space::{Kind, Space};
use crate::{Buffer, Context, Failure, QueryContext};

/// A queue of `V`: what went in first comes out first. Each call reads and writes a fixed number of
/// rows, however long the queue is. Its layout and its failures are those of
/// [`storage`](crate::storage).
#[derive(Debug)]
pub struct Queue<V> {
    space: Space,
    types: PhantomData<fn() -> V>,
}

/// Where the items are: at the positions from `first` to `end`, which is not among them. Positions
/// go up and are not used again.
#[derive(Clone, Copy)]
struct Span {
    first: u64,
    end: u64,
}

impl<V: Value> Queue<V> {
    /// The queue of this name.
    #[must_use]
    pub const fn new(name: &'static str) -> Self {
        Self { space: Space::new(Kind::Queue, name), types: PhantomData }
    }

    /// Puts `item` behind all others.
    pub fn push(&self, context: &Context<'_>, item: &V) -> Result<(), Failure> {
        let Span { first, end } = self.span(context)?;
        self.space.put(context, &self.key(end)?, item)?;
        let end = end.checked_add(1).expect("no queue takes 2^64 items");
        self.set_span(context, Span { first, end })
    }

    /// Takes the first item out; `None` if there is none.
    pub fn pop(&self, context: &Context<'_>) -> Result<Option<V>, Failure> {
        let Span { first, end } = self.span(context)?;
        if first == end {
            return Ok(None);
        }
        let item = self.item(context, first)?;
        context.delete(&self.key(first)?);
        self.set_span(context, Span { first: first + 1, end })?;
        Ok(Some(item))
    }

    /// The first item, which stays; `None` if there is none.
    pub fn peek(&self, context: &QueryContext<'_>) -> Result<Option<V>, Failure> {
        let Span { first, end } = self.span(context)?;
        (first < end).then(|| self.item(context, first)).transpose()
    }

    /// How many items there are.
    pub fn len(&self, context: &QueryContext<'_>) -> Result<u64, Failure> {
        let Span { first, end } = self.span(context)?;
        Ok(end - first)
    }

    /// Whether there are no items.
    pub fn is_empty(&self, context: &QueryContext<'_>) -> Result<bool, Failure> {
        Ok(self.len(context)? == 0)
    }

    fn item(&self, context: &QueryContext<'_>, position: u64) -> Result<V, Failure> {
        let item = self.space.get(context, &self.key(position)?)?;
        item.ok_or_else(|| self.space.unreadable("an item", "it is missing"))
    }

    fn span(&self, context: &QueryContext<'_>) -> Result<Span, Failure> {
        let stored = self.space.get(context, &self.space.prefix())?;
        let (first, end) = stored.unwrap_or((0, 0));
        if first > end {
            return Err(self.space.unreadable("the length", "it is below 0"));
        }
        Ok(Span { first, end })
    }

    fn set_span(&self, context: &Context<'_>, span: Span) -> Result<(), Failure> {
        self.space.put(context, &self.space.prefix(), &(span.first, span.end))
    }

    fn key(&self, position: u64) -> Result<Buffer, Failure> {
        self.space.key(&position)
    }
}
