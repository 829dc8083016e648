//! Where the nodes are: reading endpoints as people write them.

use std::{collections::BTreeSet, fmt, str::FromStr, sync::Arc};

use tonic::transport::Uri;

use crate::error::{Error, Result};

/// What can be given as the endpoints of a cluster: one or a list of
/// `http://host:port` or `host:port`. A string may hold several, separated by
/// commas.
pub trait IntoEndpoints {
    /// The endpoints as written, in the order in which they are to be tried.
    fn into_endpoints(self) -> Vec<String>;
}

impl IntoEndpoints for &str {
    fn into_endpoints(self) -> Vec<String> {
        vec![self.to_owned()]
    }
}

impl IntoEndpoints for String {
    fn into_endpoints(self) -> Vec<String> {
        vec![self]
    }
}

impl IntoEndpoints for &String {
    fn into_endpoints(self) -> Vec<String> {
        vec![self.clone()]
    }
}

impl<T: AsRef<str>> IntoEndpoints for Vec<T> {
    fn into_endpoints(self) -> Vec<String> {
        self.as_slice().into_endpoints()
    }
}

impl<T: AsRef<str>> IntoEndpoints for &Vec<T> {
    fn into_endpoints(self) -> Vec<String> {
        self.as_slice().into_endpoints()
    }
}

impl<T: AsRef<str>> IntoEndpoints for &[T] {
    fn into_endpoints(self) -> Vec<String> {
        self.iter().map(|text| text.as_ref().to_owned()).collect()
    }
}

impl<T: AsRef<str>, const N: usize> IntoEndpoints for [T; N] {
    fn into_endpoints(self) -> Vec<String> {
        self.as_slice().into_endpoints()
    }
}

/// The address of a node. It is read from `http://host:port` or `host:port` and
/// shown as `host:port`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint(Arc<str>);

impl Endpoint {
    /// Reads a list of endpoints, each of which may itself be a list separated
    /// by commas. The result is not empty and has no duplicates.
    pub(crate) fn parse_list(texts: &[String]) -> Result<Vec<Self>> {
        let mut seen = BTreeSet::new();
        let mut endpoints = Vec::new();
        for text in texts.iter().flat_map(|text| text.split(',')) {
            if text.trim().is_empty() {
                continue;
            }
            let endpoint: Self = text.parse()?;
            if seen.insert(endpoint.clone()) {
                endpoints.push(endpoint);
            }
        }
        if endpoints.is_empty() {
            return Err(invalid("", "none was given"));
        }
        Ok(endpoints)
    }

    /// The endpoint as the URL of its gRPC service.
    pub fn url(&self) -> String {
        format!("http://{self}")
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Endpoint {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let text = text.trim();
        let address = match text.split_once("://") {
            None => text,
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => rest,
            Some((scheme, _)) => return Err(invalid(text, format!("no {scheme}, only http"))),
        };
        let uri: Uri = format!("http://{address}").parse().map_err(|error| invalid(text, error))?;
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err(invalid(text, "nothing may follow the port"));
        }
        let host = uri.host().unwrap_or_default();
        if host.is_empty() || uri.authority().is_some_and(|a| a.as_str().contains('@')) {
            return Err(invalid(text, "it names no host, or more than a host"));
        }
        match uri.port_u16() {
            None | Some(0) => Err(invalid(text, "it has no port from 1 to 65535")),
            Some(port) => Ok(Self(format!("{host}:{port}").into())),
        }
    }
}

/// The error that `text` is not an endpoint.
fn invalid(text: &str, reason: impl fmt::Display) -> Error {
    Error::InvalidEndpoint { endpoint: text.to_owned(), reason: reason.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(endpoints: impl IntoEndpoints) -> Result<Vec<String>> {
        let endpoints = Endpoint::parse_list(&endpoints.into_endpoints())?;
        Ok(endpoints.iter().map(Endpoint::to_string).collect())
    }

    #[test]
    fn an_endpoint_is_a_url_or_an_address() {
        for text in [
            "http://127.0.0.1:5001",
            "HTTP://127.0.0.1:5001/",
            "127.0.0.1:5001",
            " 127.0.0.1:5001 ",
        ] {
            assert_eq!(list(text).unwrap(), ["127.0.0.1:5001"], "{text}");
        }
        assert_eq!(list("http://[::1]:5001").unwrap(), ["[::1]:5001"]);
        assert_eq!(list("node-1.local:80").unwrap(), ["node-1.local:80"]);
    }

    #[test]
    fn a_list_keeps_its_order_and_loses_duplicates_and_blanks() {
        let expected = ["b:2", "a:1"];
        assert_eq!(list("http://b:2,a:1,,b:2").unwrap(), expected);
        assert_eq!(list(vec!["b:2", "a:1", "http://b:2/"]).unwrap(), expected);
        assert_eq!(list(["b:2, a:1".to_owned()]).unwrap(), expected);
    }

    #[test]
    fn what_is_no_endpoint_is_refused_with_the_reason() {
        for (text, reason) in [
            ("", "none was given"),
            (" , ", "none was given"),
            ("127.0.0.1", "has no port"),
            ("localhost:0", "has no port"),
            ("https://localhost:5001", "only http"),
            ("localhost:5001/kv", "nothing may follow"),
            ("localhost:5001?a=b", "nothing may follow"),
            ("me@localhost:5001", "more than a host"),
            ("local host:5001", "invalid"),
            ("localhost:99999", "has no port"),
            (":5001", "host"),
        ] {
            let error = list(text).expect_err(text);
            assert!(matches!(error, Error::InvalidEndpoint { .. }), "{error:?}");
            let message = error.to_string();
            assert!(message.contains(reason), "{text:?} gives {message:?}");
        }
    }
}
