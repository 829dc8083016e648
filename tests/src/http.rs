//! The HTTP door: an HTTP/1.1 client that does what it is told and nothing by
//! itself, so that tests decide what goes over which connection.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use percent_encoding::{NON_ALPHANUMERIC, percent_encode};
use serde_json::Value;

/// No answer takes longer.
const TIMEOUT: Duration = Duration::from_secs(30);

/// An answer.
#[derive(Clone, Debug)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// Names in lower case, and values.
    pub headers: Vec<(String, String)>,
    /// The body, without any framing.
    pub body: Vec<u8>,
}

impl Response {
    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        headers.find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    ///
    /// # Panics
    /// If it is not JSON.
    pub fn json(&self) -> Value {
        let parsed = serde_json::from_slice(&self.body);
        parsed.unwrap_or_else(|error| panic!("not JSON ({error}): {}", self.text()))
    }

    /// Code and message of an error.
    ///
    /// # Panics
    /// If the body is not `{"error": {"code", "message"}}`.
    pub fn error(&self) -> (String, String) {
        let json = self.json();
        let part = |name: &str| match json["error"][name].as_str() {
            Some(text) if !text.is_empty() => text.to_owned(),
            _ => panic!("an error without {name}: {json}"),
        };
        (part("code"), part("message"))
    }
}

/// A connection that is kept until it is dropped.
#[derive(Debug)]
pub struct Connection {
    stream: BufReader<TcpStream>,
}

impl Connection {
    /// Connects.
    ///
    /// # Errors
    /// If nobody listens.
    pub fn open(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Asks for a target: a path, and a query if any.
    ///
    /// # Errors
    /// If the connection breaks or what comes back is no HTTP.
    pub fn get(&mut self, target: &str) -> io::Result<Response> {
        self.request("GET", target, b"")
    }

    /// Sends a request with a body and reads the answer.
    ///
    /// # Errors
    /// If the connection breaks or what comes back is no HTTP.
    pub fn request(&mut self, method: &str, target: &str, body: &[u8]) -> io::Result<Response> {
        self.request_with_headers(method, target, &[], body)
    }

    /// Sends a request with headers of its own besides those that have to be.
    ///
    /// # Errors
    /// If the connection breaks or what comes back is no HTTP.
    pub fn request_with_headers(
        &mut self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> io::Result<Response> {
        let length = body.len();
        let mut head =
            format!("{method} {target} HTTP/1.1\r\nhost: node\r\ncontent-length: {length}\r\n");
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        head += "\r\n";
        self.send(head.as_bytes())?;
        self.send(body)?;
        self.receive()
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// If the connection breaks.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }

    /// Reads an answer; one that only announces another (1xx) is read as such.
    ///
    /// # Errors
    /// If the connection breaks or what comes back is no HTTP.
    pub fn receive(&mut self) -> io::Result<Response> {
        let line = self.line()?;
        let status = line.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3));
        let status = status.and_then(|status| status.parse().ok());
        let status = status.ok_or_else(|| no_http(&line))?;
        let mut headers = Vec::new();
        loop {
            let line = self.line()?;
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(':').ok_or_else(|| no_http(&line))?;
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        let mut response = Response { status, headers, body: Vec::new() };
        response.body = self.body(&response)?;
        Ok(response)
    }

    fn body(&mut self, head: &Response) -> io::Result<Vec<u8>> {
        if head.status < 200 || head.status == 204 {
            return Ok(Vec::new());
        }
        if head.header("transfer-encoding") == Some("chunked") {
            return self.chunks();
        }
        let Some(length) = head.header("content-length") else {
            let mut body = Vec::new();
            self.stream.read_to_end(&mut body)?;
            return Ok(body);
        };
        let length = length.parse().map_err(|_| no_http(length))?;
        self.exactly(length)
    }

    fn chunks(&mut self) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let line = self.line()?;
            let length = usize::from_str_radix(&line, 16).map_err(|_| no_http(&line))?;
            body.extend(self.exactly(length)?);
            self.line()?;
            if length == 0 {
                return Ok(body);
            }
        }
    }

    fn exactly(&mut self, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(line.trim_end_matches(['\r', '\n']).to_owned())
    }
}

fn no_http(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("no HTTP: {what:?}"))
}

/// The path of a key: every byte but letters and digits percent-encoded.
pub fn path_of(key: &[u8]) -> String {
    format!("/kv/{}", percent_encode(key, NON_ALPHANUMERIC))
}

/// A part of a query: percent-encoded in the same way.
pub fn encoded(part: &[u8]) -> String {
    percent_encode(part, NON_ALPHANUMERIC).to_string()
}
