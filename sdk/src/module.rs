//! What makes a crate a module the host accepts: the exports `apply`, `query` and perhaps `migrate`, and
//! the custom section `raftkv`. All of it is put together at compile time.

/// Makes a [`StateMachine`](crate::StateMachine) the plugin of this crate.
///
/// `plugin!(Counter)` names the plugin after the crate; `plugin!(Counter, name: "counter")` names it
/// otherwise. With `migrate` at the end, `plugin!(Counter, migrate)`, the module carries over state of
/// other versions, as its [`Migrate`](crate::Migrate) says. A name has 1–64 characters of `a-z`, `0-9`, `-` and `_`. The version is the crate's.
/// If the environment variable `RAFTKV_SOURCE_HASH` is set while compiling, the module carries it as
/// the hash of its sources.
///
/// Natively this only checks the name; a crate can be tested as it is.
#[macro_export]
macro_rules! plugin {
    ($machine:ty) => {
        $crate::plugin!($machine, name: ::core::env!("CARGO_PKG_NAME"));
    };
    ($machine:ty, migrate) => {
        $crate::plugin!($machine, name: ::core::env!("CARGO_PKG_NAME"), migrate);
    };
    ($machine:ty, name: $name:expr, migrate) => {
        $crate::plugin!($machine, name: $name);
        const _: () = {
            // SAFETY: this is the name that the ABI reserves for this function.
            #[cfg(target_arch = "wasm32")]
            #[unsafe(no_mangle)]
            extern "C" fn migrate() {
                $crate::__private::migrate::<$machine>();
            }

            #[cfg(not(target_arch = "wasm32"))]
            const fn migrates<M: $crate::Migrate>() {}
            #[cfg(not(target_arch = "wasm32"))]
            const _: () = migrates::<$machine>();
        };
    };
    ($machine:ty, name: $name:expr) => {
        const _: () = {
            const SOURCE_HASH: ::core::option::Option<&str> = ::core::option_env!("RAFTKV_SOURCE_HASH");
            const TEXT: [&str; 7] = [
                "name=",
                $name,
                "\nversion=",
                ::core::env!("CARGO_PKG_VERSION"),
                "\nabi=1\n",
                match SOURCE_HASH {
                    ::core::option::Option::Some(_) => "source-hash=",
                    ::core::option::Option::None => "",
                },
                match SOURCE_HASH {
                    ::core::option::Option::Some(hash) => hash,
                    ::core::option::Option::None => "",
                },
            ];
            const _: () = $crate::__private::check(TEXT[1], TEXT[3]);

            #[cfg(target_arch = "wasm32")]
            const LEN: usize = $crate::__private::section_len(&TEXT);
            // SAFETY: a custom section is no part of the program; its bytes hold no pointers.
            #[cfg(target_arch = "wasm32")]
            #[used]
            #[unsafe(link_section = "raftkv")]
            static SECTION: [u8; LEN] = $crate::__private::section(&TEXT);

            // SAFETY: these are the names that the ABI reserves for these functions.
            #[cfg(target_arch = "wasm32")]
            #[unsafe(no_mangle)]
            extern "C" fn apply() {
                $crate::__private::apply::<$machine>();
            }

            // SAFETY: as above.
            #[cfg(target_arch = "wasm32")]
            #[unsafe(no_mangle)]
            extern "C" fn query() {
                $crate::__private::query::<$machine>();
            }

            // The machine is checked natively too.
            #[cfg(not(target_arch = "wasm32"))]
            const fn is_a_state_machine<M: $crate::StateMachine>() {}
            #[cfg(not(target_arch = "wasm32"))]
            const _: () = is_a_state_machine::<$machine>();
        };
    };
}

/// Fails to compile if the host would refuse the name or the version.
pub const fn check(name: &str, version: &str) {
    let name = name.as_bytes();
    let mut valid = matches!(name.len(), 1..=64);
    let mut at = 0;
    while at < name.len() {
        valid &= matches!(name[at], b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_');
        at += 1;
    }
    assert!(valid, "the name of a plugin has 1 to 64 characters of a-z, 0-9, - and _");
    assert!(matches!(version.len(), 1..=64), "the version of a plugin has at most 64 characters");
}

/// Length of the section made of `parts`, the last of which ends a line if it is not empty.
pub const fn section_len(parts: &[&str]) -> usize {
    let mut len = 0;
    let mut part = 0;
    while part < parts.len() {
        len += parts[part].len();
        part += 1;
    }
    len + !parts[parts.len() - 1].is_empty() as usize
}

/// The bytes of the section made of `parts`; `N` is their [`section_len`].
pub const fn section<const N: usize>(parts: &[&str]) -> [u8; N] {
    let mut bytes = [b'\n'; N];
    let mut len = 0;
    let mut part = 0;
    while part < parts.len() {
        let text = parts[part].as_bytes();
        let mut at = 0;
        while at < text.len() {
            bytes[len] = text[at];
            len += 1;
            at += 1;
        }
        part += 1;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::{check, section, section_len};

    #[test]
    fn each_line_of_the_section_ends_in_a_newline() {
        const WITH_HASH: [&str; 3] = ["abi=1\n", "source-hash=", "ab"];
        const BYTES: [u8; section_len(&WITH_HASH)] = section(&WITH_HASH);
        assert_eq!(&BYTES, b"abi=1\nsource-hash=ab\n");

        const WITHOUT: [&str; 3] = ["abi=1\n", "", ""];
        const SHORT: [u8; section_len(&WITHOUT)] = section(&WITHOUT);
        assert_eq!(&SHORT, b"abi=1\n");
    }

    #[test]
    fn names_the_host_would_refuse_are_refused() {
        check("kv-2_x", "1.0.0-rc.1+5");
        for name in ["", "Kv", "k v", "k\nabi=2", "é", &"k".repeat(65)] {
            assert!(std::panic::catch_unwind(|| check(name, "1.0.0")).is_err(), "{name}");
        }
    }
}
