//! A number.

use super::space::{Kind, Space};
use crate::{Buffer, Context, Failure, QueryContext, codes};

/// A number that begins at 0. Its layout and its failures are those of [`storage`](crate::storage).
#[derive(Debug)]
pub struct Counter {
    space: Space,
    name: &'static str,
}

impl Counter {
    /// The counter of this name.
    #[must_use]
    pub const fn new(name: &'static str) -> Self {
        Self { space: Space::new(Kind::Counter, name), name }
    }

    /// The number; 0 if it was never set.
    pub fn get(&self, context: &QueryContext<'_>) -> Result<u64, Failure> {
        Ok(self.space.get(context, &self.key())?.unwrap_or(0))
    }

    /// Sets the number.
    pub fn set(&self, context: &Context<'_>, number: u64) -> Result<(), Failure> {
        self.space.put(context, &self.key(), &number)
    }

    /// Adds `amount` and gives the sum.
    ///
    /// # Errors
    /// [`codes::OVERFLOW`] if the sum is no `u64`; the number stays as it is.
    pub fn add(&self, context: &Context<'_>, amount: u64) -> Result<u64, Failure> {
        self.change(context, |number| number.checked_add(amount))
    }

    /// Takes `amount` away and gives the difference.
    ///
    /// # Errors
    /// [`codes::OVERFLOW`] if the difference is below 0; the number stays as it is.
    pub fn subtract(&self, context: &Context<'_>, amount: u64) -> Result<u64, Failure> {
        self.change(context, |number| number.checked_sub(amount))
    }

    fn change(
        &self,
        context: &Context<'_>,
        change: impl FnOnce(u64) -> Option<u64>,
    ) -> Result<u64, Failure> {
        let changed = change(self.get(context)?).ok_or_else(|| {
            let message = format!("the counter `{}` would leave its range", self.name);
            Failure::new(codes::OVERFLOW, message)
        })?;
        self.set(context, changed)?;
        Ok(changed)
    }

    fn key(&self) -> Buffer {
        self.space.prefix()
    }
}
