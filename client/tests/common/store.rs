//! What the nodes of a test's cluster store: the pairs, and what became of the
//! writes that carry a number.

use super::*;

/// Pairs in a page of a scan.
const PAGE_PAIRS: usize = 2;
/// Pages after which the node ends a call, for the client to ask again.
const CALL_PAGES: usize = 2;

/// The number of a write: session and sequence.
type Number = (u64, u64);

#[derive(Default)]
pub struct Store {
    pub operations: Operations,
    pairs: Mutex<BTreeMap<Bytes, (Bytes, u64)>>,
    last_version: Mutex<u64>,
    puts: Mutex<BTreeMap<Number, Result<v1::PutResponse, Status>>>,
    applies: Mutex<BTreeMap<Number, v1::ApplyResponse>>,
    effects: AtomicUsize,
}

fn number(once: Option<&v1::Once>) -> Option<Number> {
    once.map(|once| (once.session, once.sequence))
}

impl Store {
    /// Whether there is such a key.
    pub fn has(&self, key: &str) -> bool {
        self.pairs.lock().unwrap().contains_key(key.as_bytes())
    }

    /// How many writes took effect.
    pub fn effects(&self) -> usize {
        self.effects.load(SeqCst)
    }

    /// Puts once, however often it is asked to.
    pub fn put(&self, put: v1::PutRequest) -> Result<v1::PutResponse, Status> {
        let Some(number) = number(put.once.as_ref()) else {
            return self.put_anew(put);
        };
        let mut puts = self.puts.lock().unwrap();
        puts.entry(number).or_insert_with(|| self.put_anew(put)).clone()
    }

    fn put_anew(&self, put: v1::PutRequest) -> Result<v1::PutResponse, Status> {
        if put.key.is_empty() {
            return Err(status_with_detail(
                Code::InvalidArgument,
                "a key has 1 byte at least",
                Detail::InvalidArgument(v1::InvalidArgument {
                    field: "key".into(),
                    limit: "1 B".into(),
                }),
            ));
        }
        let mut pairs = self.pairs.lock().unwrap();
        let current = pairs.get(&put.key).map_or(0, |(_, version)| *version);
        if put.expected_version.is_some_and(|expected| expected != current) {
            return Err(refused(format!("the version is {current}")));
        }
        let mut last_version = self.last_version.lock().unwrap();
        *last_version += 1;
        self.effects.fetch_add(1, SeqCst);
        pairs.insert(put.key, (put.value, *last_version));
        Ok(v1::PutResponse { version: *last_version })
    }

    pub fn get(&self, get: &v1::GetRequest) -> v1::GetResponse {
        match self.pairs.lock().unwrap().get(&get.key) {
            None => v1::GetResponse::default(),
            Some((value, version)) => v1::GetResponse {
                found: true,
                value: value.clone(),
                version: *version,
                ttl_ms: None,
            },
        }
    }

    pub fn delete(&self, delete: &v1::DeleteRequest) -> v1::DeleteResponse {
        let existed = self.pairs.lock().unwrap().remove(&delete.key).is_some();
        v1::DeleteResponse { existed }
    }

    /// Adds once, however often it is asked to.
    pub fn increment(&self, increment: v1::IncrementRequest) -> v1::IncrementResponse {
        let v1::IncrementRequest { key, delta, once } = increment;
        let found = self.get(&v1::GetRequest { key: key.clone(), ..Default::default() });
        let before: i64 = match found.found {
            true => std::str::from_utf8(&found.value).unwrap().parse().unwrap(),
            false => 0,
        };
        let value = (before + delta).to_string().into();
        let put = v1::PutRequest { key: key.clone(), value, once, ..Default::default() };
        let version = self.put(put).unwrap().version;
        let now = self.get(&v1::GetRequest { key, ..Default::default() });
        let value = std::str::from_utf8(&now.value).unwrap().parse().unwrap();
        v1::IncrementResponse { value, version }
    }

    /// Applies once, however often it is asked to.
    pub fn apply(&self, apply: &v1::ApplyRequest) -> Result<v1::ApplyResponse, Status> {
        if apply.command == "refuse" {
            return Err(refused("as told".into()));
        }
        let anew = || {
            self.effects.fetch_add(1, SeqCst);
            v1::ApplyResponse { response: [b"applied ", &apply.command[..]].concat().into() }
        };
        let Some(number) = number(apply.once.as_ref()) else {
            return Ok(anew());
        };
        Ok(self.applies.lock().unwrap().entry(number).or_insert_with(anew).clone())
    }

    /// The pages of one call; at most [`CALL_PAGES`], whatever is left.
    pub fn scan(&self, scan: &v1::ScanRequest) -> Vec<Result<v1::ScanResponse, Status>> {
        let limit = match scan.limit {
            0 => usize::MAX,
            limit => limit as usize,
        };
        let pairs = self.pairs.lock().unwrap();
        let matching: Vec<v1::KeyValue> = pairs
            .iter()
            .filter(|(key, _)| key.starts_with(&scan.prefix) && **key > scan.cursor)
            .map(|(key, (value, version))| v1::KeyValue {
                key: key.clone(),
                value: value.clone(),
                version: *version,
            })
            .collect();
        let given = &matching[..matching.len().min(limit)];
        let last_key = matching.last().map(|pair| &pair.key);
        let pages = given.chunks(PAGE_PAIRS).take(CALL_PAGES).map(|pairs| {
            let cursor = pairs.last().map(|pair| pair.key.clone());
            Ok(v1::ScanResponse {
                pairs: pairs.to_vec(),
                cursor: cursor.filter(|key| Some(key) != last_key).unwrap_or_default(),
            })
        });
        pages.collect()
    }
}
