//! A counter: the smallest plugin worth having. A command is a step of 8 bytes to add, the response
//! and the answer to any query is the total.

use raft_kv_sdk::{Context, Failure, QueryContext, Response, StateMachine};

struct Counter;

fn total(context: &QueryContext<'_>) -> u64 {
    let stored = context.get(b"total").and_then(|value| value[..].try_into().ok());
    stored.map_or(0, u64::from_le_bytes)
}

impl StateMachine for Counter {
    fn apply(context: &Context<'_>, command: &[u8]) -> Result<Response, Failure> {
        let step = command.try_into().map_err(|_| Failure::new(1, "a step has 8 bytes"))?;
        let total = total(context).checked_add(u64::from_le_bytes(step)).expect("the total fits");
        context.put(b"total", &total.to_le_bytes());
        Ok(total.to_le_bytes().into())
    }

    fn query(context: &QueryContext<'_>, _request: &[u8]) -> Result<Response, Failure> {
        Ok(total(context).to_le_bytes().into())
    }
}

raft_kv_sdk::plugin!(Counter, name: "counter");

#[cfg(test)]
mod tests {
    use raft_kv_sdk::testing::TestHost;

    #[test]
    fn steps_add_up() {
        let mut host = TestHost::<super::Counter>::new();
        assert_eq!(host.apply(&2_u64.to_le_bytes()), Ok(2_u64.to_le_bytes().to_vec()));
        assert_eq!(host.apply(b"two").map_err(|failure| failure.code), Err(1));
        assert_eq!(host.apply(&3_u64.to_le_bytes()), Ok(5_u64.to_le_bytes().to_vec()));
        assert_eq!(host.query(b""), Ok(5_u64.to_le_bytes().to_vec()));
    }
}
