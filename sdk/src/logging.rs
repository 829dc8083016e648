//! Lines for the log of the node, with the arguments of `format!`.
//!
//! The text is put together on every replica, also where the node does not keep lines of that level;
//! what that costs in fuel is the same everywhere.

/// Logs that something is broken: `error!(context, "no account {name}")`.
#[macro_export]
macro_rules! error {
    ($context:expr, $($text:tt)+) => {
        $context.log($crate::Level::Error, &::std::format!($($text)+))
    };
}

/// Logs that something is odd: `warn!(context, "{count} rows are left over")`.
#[macro_export]
macro_rules! warn {
    ($context:expr, $($text:tt)+) => {
        $context.log($crate::Level::Warn, &::std::format!($($text)+))
    };
}

/// Logs what is worth knowing: `info!(context, "{name} begins")`.
#[macro_export]
macro_rules! info {
    ($context:expr, $($text:tt)+) => {
        $context.log($crate::Level::Info, &::std::format!($($text)+))
    };
}

/// Logs what helps the plugin's author: `debug!(context, "found {value:?}")`.
#[macro_export]
macro_rules! debug {
    ($context:expr, $($text:tt)+) => {
        $context.log($crate::Level::Debug, &::std::format!($($text)+))
    };
}
