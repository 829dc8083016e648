//! The formats that come with the SDK, each behind the feature of its name: messages of a
//! [`TypedMachine`](crate::TypedMachine) in [`Json`] or [`Prost`], and the same as stored values.

#[cfg(feature = "json")]
mod json {
    use serde::{Serialize, de::DeserializeOwned};

    use crate::storage::Value;
    use crate::{Decode, Encode};

    /// JSON, by serde: as the [`Format`](crate::TypedMachine::Format) of a machine, and, around a
    /// value, as the layout it is stored in: `Map<String, Json<Account>>`. Needs the feature `json`.
    ///
    /// Written without white space, fields in the order they are declared in. A message with anything
    /// behind it is refused; whether one with unknown fields is, is the type's matter
    /// (`#[serde(deny_unknown_fields)]`).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Json<T = ()>(
        /// The value itself.
        pub T,
    );

    impl<T: DeserializeOwned> Decode<T> for Json {
        fn decode(bytes: &[u8]) -> Result<T, String> {
            serde_json::from_slice(bytes).map_err(|error| error.to_string())
        }
    }

    impl<T: Serialize> Encode<T> for Json {
        fn encode(message: &T, bytes: &mut Vec<u8>) -> Result<(), String> {
            serde_json::to_writer(bytes, message).map_err(|error| error.to_string())
        }
    }

    impl<T: Serialize + DeserializeOwned> Value for Json<T> {
        fn encode_value(&self, bytes: &mut Vec<u8>) -> Result<(), String> {
            <Json as Encode<T>>::encode(&self.0, bytes)
        }

        fn decode_value(bytes: &[u8]) -> Result<Self, String> {
            <Json as Decode<T>>::decode(bytes).map(Json)
        }
    }
}

#[cfg(feature = "prost")]
mod prost {
    use prost::Message;

    use crate::storage::Value;
    use crate::{Decode, Encode};

    /// Protocol buffers, by prost: as the [`Format`](crate::TypedMachine::Format) of a machine, and,
    /// around a message, as the layout it is stored in. Needs the feature `prost`.
    ///
    /// Fields are written in the order of their numbers. No bytes at all are a message too, with every
    /// field at its default.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Prost<T = ()>(
        /// The message itself.
        pub T,
    );

    impl<T: Message + Default> Decode<T> for Prost {
        fn decode(bytes: &[u8]) -> Result<T, String> {
            T::decode(bytes).map_err(|error| error.to_string())
        }
    }

    impl<T: Message> Encode<T> for Prost {
        fn encode(message: &T, bytes: &mut Vec<u8>) -> Result<(), String> {
            message.encode(bytes).map_err(|error| error.to_string())
        }
    }

    impl<T: Message + Default> Value for Prost<T> {
        fn encode_value(&self, bytes: &mut Vec<u8>) -> Result<(), String> {
            <Prost as Encode<T>>::encode(&self.0, bytes)
        }

        fn decode_value(bytes: &[u8]) -> Result<Self, String> {
            <Prost as Decode<T>>::decode(bytes).map(Prost)
        }
    }
}

#[cfg(feature = "json")]
pub use self::json::Json;
#[cfg(feature = "prost")]
pub use self::prost::Prost;
