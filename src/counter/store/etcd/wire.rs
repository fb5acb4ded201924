//! What goes to and from etcd's JSON gateway: the parts of its v3 interface that are used here. Keys and values are
//! text on this side and base64 on the wire; 64-bit numbers are strings there.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A key or a value.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Text(pub(super) String);

impl Serialize for Text {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = STANDARD.decode(text).map_err(de::Error::custom)?;
        // What is not UTF-8 is not of tallyring, and is refused by what is made of it.
        Ok(Self(String::from_utf8_lossy(&bytes).into_owned()))
    }
}

/// A transaction: all of `success` if all comparisons hold, else all of `failure`.
#[derive(Debug, Default, Serialize)]
pub(super) struct Transaction {
    pub(super) compare: Vec<Compare>,
    pub(super) success: Vec<Operation>,
    pub(super) failure: Vec<Operation>,
}

/// A comparison. That of the value of a key that is not there never holds; the revision of one that is not there is 0.
#[derive(Debug, Serialize)]
pub(super) struct Compare {
    key: Text,
    target: &'static str,
    result: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<Text>,
    #[serde(rename = "modRevision", skip_serializing_if = "Option::is_none")]
    revision: Option<String>,
}

impl Compare {
    /// The value of a key is there, and above this one, byte by byte.
    pub(super) fn above(key: &str, value: String) -> Self {
        Self::value(key, "GREATER", value)
    }

    /// The value of a key is there, and below this one.
    pub(super) fn below(key: &str, value: String) -> Self {
        Self::value(key, "LESS", value)
    }

    fn value(key: &str, result: &'static str, value: String) -> Self {
        let (key, value) = (Text(key.to_owned()), Some(Text(value)));
        Self { key, target: "VALUE", result, value, revision: None }
    }

    /// A key was changed last at this revision.
    pub(super) fn unchanged(key: &str, revision: u64) -> Self {
        Self::revision(key, "EQUAL", revision)
    }

    /// Never holds: no revision is below 0.
    pub(super) fn never(key: &str) -> Self {
        Self::revision(key, "LESS", 0)
    }

    fn revision(key: &str, result: &'static str, revision: u64) -> Self {
        let (key, revision) = (Text(key.to_owned()), Some(revision.to_string()));
        Self { key, target: "MOD", result, value: None, revision }
    }
}

/// A part of a transaction.
#[derive(Debug, Serialize)]
pub(super) enum Operation {
    #[serde(rename = "requestRange")]
    Range(Range),
    #[serde(rename = "requestPut")]
    Put { key: Text, value: Text },
    #[serde(rename = "requestDeleteRange")]
    Delete { key: Text },
    #[serde(rename = "requestTxn")]
    Nested(Transaction),
}

impl Operation {
    pub(super) fn get(key: &str) -> Self {
        Self::Range(Range { key: Text(key.to_owned()), ..Range::default() })
    }

    pub(super) fn put(key: String, value: String) -> Self {
        Self::Put { key: Text(key), value: Text(value) }
    }

    pub(super) fn delete(key: String) -> Self {
        Self::Delete { key: Text(key) }
    }
}

/// A read of one key, or of all from `key` up to but not including `end`. Not `serializable`, so it contains all that
/// was answered before it began, whichever member answers.
#[derive(Debug, Default, Serialize)]
pub(super) struct Range {
    pub(super) key: Text,
    #[serde(rename = "rangeEnd", skip_serializing_if = "Option::is_none")]
    pub(super) end: Option<Text>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) limit: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) revision: Option<String>,
}

impl Range {
    /// All keys that begin with `prefix`, which ends in `/`.
    pub(super) fn prefix(prefix: &str) -> Self {
        Self { key: Text(prefix.to_owned()), end: Some(Text(end_of(prefix))), ..Self::default() }
    }
}

/// The first key after all that begin with `prefix`, which ends in `/`: that with `0`, the next byte.
pub(super) fn end_of(prefix: &str) -> String {
    format!("{}0", prefix.strip_suffix('/').unwrap_or(prefix))
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct Header {
    /// 0 where it is not told.
    #[serde(default, alias = "clusterId", deserialize_with = "number")]
    pub(super) cluster_id: u64,
    #[serde(default, deserialize_with = "number")]
    pub(super) revision: u64,
}

/// The answer to a transaction, and to a part of it that is one.
#[derive(Debug, Default, Deserialize)]
pub(super) struct TransactionAnswer {
    #[serde(default)]
    pub(super) header: Header,
    #[serde(default)]
    pub(super) succeeded: bool,
    #[serde(default)]
    responses: Vec<OperationAnswer>,
}

#[derive(Debug, Deserialize)]
struct OperationAnswer {
    #[serde(default, alias = "responseRange")]
    response_range: Option<RangeAnswer>,
    #[serde(default, alias = "responseTxn")]
    response_txn: Option<TransactionAnswer>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct RangeAnswer {
    #[serde(default)]
    pub(super) kvs: Vec<KeyValue>,
    /// Whether there are more than were asked for.
    #[serde(default)]
    pub(super) more: bool,
}

#[derive(Debug, Deserialize)]
pub(super) struct KeyValue {
    pub(super) key: Text,
    #[serde(default)]
    pub(super) value: Text,
    #[serde(default, alias = "modRevision", deserialize_with = "number")]
    pub(super) mod_revision: u64,
}

impl TransactionAnswer {
    /// What its reads have found, those of nested transactions included, in order.
    pub(super) fn into_ranges(self) -> Vec<RangeAnswer> {
        let of = |answer: OperationAnswer| match (answer.response_range, answer.response_txn) {
            (Some(range), _) => vec![range],
            (None, Some(nested)) => nested.into_ranges(),
            (None, None) => Vec::new(),
        };
        self.responses.into_iter().flat_map(of).collect()
    }
}

/// A question without parameters.
#[derive(Debug, Serialize)]
pub(super) struct Empty {}

/// What a member says of itself.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Status {
    #[serde(default)]
    pub(super) header: Header,
    #[serde(default)]
    pub(super) version: String,
    #[serde(default, deserialize_with = "number")]
    pub(super) leader: u64,
    #[serde(default)]
    pub(super) errors: Vec<String>,
    #[serde(default, alias = "isLearner")]
    pub(super) is_learner: bool,
}

#[derive(Debug, Serialize)]
pub(super) struct Authenticate<'a> {
    pub(super) name: &'a str,
    pub(super) password: &'a str,
}

#[derive(Debug, Deserialize)]
pub(super) struct Authenticated {
    #[serde(default)]
    pub(super) token: String,
}

/// An error of the gateway; etcd 3.4 and 3.5 have `error` beside `message`.
#[derive(Debug, Deserialize)]
pub(super) struct ErrorAnswer {
    pub(super) code: u32,
    #[serde(default)]
    pub(super) message: String,
}

/// A 64-bit number, which is a string on the wire.
fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_is_as_the_gateway_has_it() {
        let put = Operation::put(String::from("/a"), String::from("5"));
        let nested =
            Operation::Nested(Transaction { success: vec![put], ..Transaction::default() });
        let compare = vec![Compare::above("/a", String::from("4")), Compare::unchanged("/a", 7)];
        let transaction = Transaction {
            compare,
            success: vec![nested, Operation::delete(String::from("/b"))],
            failure: vec![Operation::get("/a"), Operation::Range(Range::prefix("/c/"))],
        };
        let expected = concat!(
            r#"{"compare":[{"key":"L2E=","target":"VALUE","result":"GREATER","value":"NA=="},"#,
            r#"{"key":"L2E=","target":"MOD","result":"EQUAL","modRevision":"7"}],"#,
            r#""success":[{"requestTxn":{"compare":[],"success":[{"requestPut":{"key":"L2E=","value":"NQ=="}}],"failure":[]}},"#,
            r#"{"requestDeleteRange":{"key":"L2I="}}],"#,
            r#""failure":[{"requestRange":{"key":"L2E="}},{"requestRange":{"key":"L2Mv","rangeEnd":"L2Mw"}}]}"#,
        );
        assert_eq!(serde_json::to_string(&transaction).unwrap(), expected);
    }

    #[test]
    fn an_answer_has_what_all_its_reads_found() {
        // Of etcd 3.4.23.
        let answer = concat!(
            r#"{"header":{"cluster_id":"324952591200643719","revision":"2","raft_term":"2"},"succeeded":true,"#,
            r#""responses":[{"response_txn":{"header":{},"succeeded":true,"responses":["#,
            r#"{"response_put":{"header":{"revision":"2"}}},{"response_range":{"header":{"revision":"2"},"#,
            r#""kvs":[{"key":"L3QvYQ==","create_revision":"2","mod_revision":"2","version":"1","value":"NQ=="}],"#,
            r#""more":true,"count":"1"}}]}},{"response_range":{}}]}"#,
        );
        let answer: TransactionAnswer = serde_json::from_str(answer).unwrap();
        assert!(answer.succeeded && answer.header.revision == 2);
        let ranges = answer.into_ranges();
        assert_eq!(ranges.len(), 2);
        let [found] = &ranges[0].kvs[..] else { panic!("{ranges:?}") };
        assert_eq!((&*found.key.0, &*found.value.0, found.mod_revision), ("/t/a", "5", 2));
        assert!(ranges[0].more && ranges[1].kvs.is_empty());
        // With the names that protobuf's own JSON has.
        let answer =
            r#"{"responses":[{"responseRange":{"kvs":[{"key":"YQ==","modRevision":"3"}]}}]}"#;
        let answer: TransactionAnswer = serde_json::from_str(answer).unwrap();
        assert!(!answer.succeeded);
        assert_eq!(answer.into_ranges()[0].kvs[0].mod_revision, 3);
        assert!(
            serde_json::from_str::<TransactionAnswer>(r#"{"header":{"revision":"x"}}"#).is_err()
        );
    }

    #[test]
    fn a_prefix_ends_before_its_neighbours() {
        // That of the counter without a name.
        for prefix in ["/site/totals//", "/site/totals/a/"] {
            let end = end_of(prefix);
            assert!(format!("{prefix}~") < end && *prefix < *end);
            for after in ["/site/totals/b/x", "/site/totals/a0", "/site/totals/a0/x"] {
                assert!(*after >= *end, "{after} {end}");
            }
        }
        assert!(
            *"/site/totals/-/x" < *end_of("/site/totals//")
                || "/site/totals/-/x" < "/site/totals//"
        );
    }
}
