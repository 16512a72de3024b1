//! What goes over the control socket, each in a line of JSON. `docs/control-protocol.md` says what it means.

use std::path::PathBuf;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::snapshot;
use crate::vm::driver::{Ending, News, SnapshotError, State, Step, Taken};
use crate::vm::inspect::RestoredFrom;
use crate::vm::{self, CannotCapture, DiskMode, DisksError};

/// The protocol's version: what was there in it means the same as long as the number is the same.
pub const PROTOCOL: u32 = 1;
/// How long a guest has to end itself where nobody says.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// What a client wants.
#[derive(Debug, Clone, PartialEq)]
pub enum Call {
    Version,
    Status,
    Inspect,
    Pause,
    Resume,
    Stop { patience: Duration },
    Kill,
    Wait,
    Events,
    Balloon { target: Option<u64> },
    Attach,
    Logs { follow: bool },
    Snapshot(Wanted),
}

/// A snapshot that is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    pub directory: PathBuf,
    pub diff: Option<Diff>,
    pub disks: Option<DiskMode>,
    pub stop: bool,
}

/// On which snapshot a diff builds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Diff {
    /// The last one.
    Last,
    /// The one that is there by now.
    On(PathBuf),
}

/// Why a request is not carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// A word for programs.
    pub code: &'static str,
    /// A sentence for people.
    pub message: String,
}

impl Failure {
    pub fn new(code: &'static str, message: impl ToString) -> Self {
        Self { code, message: message.to_string() }
    }
}

/// The outer form of a request.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope {
    #[serde(default)]
    id: Value,
    method: String,
    #[serde(default)]
    params: Map<String, Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct StopParams {
    #[serde(default)]
    timeout_ms: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BalloonParams {
    #[serde(default)]
    target: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LogsParams {
    #[serde(default)]
    follow: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SnapshotParams {
    directory: PathBuf,
    #[serde(default)]
    diff: DiffParam,
    #[serde(default)]
    disks: Option<DiskMode>,
    #[serde(default)]
    stop: bool,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "diff is true, false or a path")]
enum DiffParam {
    Whether(bool),
    On(PathBuf),
}

impl Default for DiffParam {
    fn default() -> Self {
        Self::Whether(false)
    }
}

impl SnapshotParams {
    /// Where the client is does not count here.
    fn call(self) -> Result<Call, Failure> {
        let Self { directory, diff, disks, stop } = self;
        let diff = match diff {
            DiffParam::Whether(false) => None,
            DiffParam::Whether(true) => Some(Diff::Last),
            DiffParam::On(base) => Some(Diff::On(base)),
        };
        let base = match &diff {
            Some(Diff::On(base)) => base,
            _ => &directory,
        };
        if directory.is_absolute() && base.is_absolute() {
            return Ok(Call::Snapshot(Wanted { directory, diff, disks, stop }));
        }
        Err(Failure::new("params", "the directory of a snapshot is an absolute path"))
    }
}

/// What a line asks for, and the id with which it wants to be answered.
pub fn parse(line: &[u8]) -> (Value, Result<Call, Failure>) {
    let envelope: Envelope = match serde_json::from_slice(line) {
        Ok(envelope) => envelope,
        Err(error) => {
            return (Value::Null, Err(Failure::new("parse", format!("this is no request: {error}"))));
        }
    };
    let Envelope { id, method, params } = envelope;
    if !matches!(id, Value::Null | Value::Number(_) | Value::String(_)) {
        return (Value::Null, Err(Failure::new("parse", "an id is a number or a text")));
    }
    (id, call(&method, params))
}

fn call(method: &str, params: Map<String, Value>) -> Result<Call, Failure> {
    let plain = |call| read::<Nothing>(method, params.clone()).map(|Nothing {}| call);
    match method {
        "version" | "ping" => plain(Call::Version),
        "status" => plain(Call::Status),
        "inspect" => plain(Call::Inspect),
        "pause" => plain(Call::Pause),
        "resume" => plain(Call::Resume),
        "kill" => plain(Call::Kill),
        "wait" => plain(Call::Wait),
        "events" => plain(Call::Events),
        "attach" => plain(Call::Attach),
        "stop" => {
            let StopParams { timeout_ms } = read(method, params)?;
            Ok(Call::Stop { patience: timeout_ms.map_or(PATIENCE, Duration::from_millis) })
        }
        "balloon" => read(method, params).map(|BalloonParams { target }| Call::Balloon { target }),
        "snapshot" => read::<SnapshotParams>(method, params)?.call(),
        "logs" => read(method, params).map(|LogsParams { follow }| Call::Logs { follow }),
        // What it said may be as long as a line.
        _ => Err(Failure::new(
            "unknown-method",
            "there is no such method; there are version, ping, status, inspect, pause, resume, stop, kill, wait, \
             events, balloon, attach, logs and snapshot",
        )),
    }
}

fn read<T: DeserializeOwned>(method: &str, params: Map<String, Value>) -> Result<T, Failure> {
    serde_json::from_value(Value::Object(params))
        .map_err(|error| Failure::new("params", format!("the params of {method}: {error}")))
}

/// An answer, with the line's end.
pub fn answer(id: &Value, result: Result<Value, Failure>) -> Vec<u8> {
    let value = match result {
        Ok(result) => json!({ "id": id, "result": result }),
        Err(Failure { code, message }) => json!({ "id": id, "error": { "code": code, "message": message } }),
    };
    line(&value)
}

/// An event, with the line's end.
pub fn event(news: &News) -> Vec<u8> {
    match news {
        News::Event(event) => line(&serde_json::to_value(event).unwrap_or_default()),
        News::Lost(count) => line(&json!({ "event": "lost", "count": count })),
    }
}

/// How far the work on a request is, with the line's end.
pub fn progress(id: &Value, step: Step) -> Vec<u8> {
    line(&json!({ "id": id, "progress": step }))
}

/// A snapshot that was taken.
pub fn taken(taken: &Taken) -> Value {
    let Taken { directory, info, size, disks, copied, stopped_for, state } = taken;
    json!({
        "directory": directory.display().to_string(),
        "id": info.id_in_hex(),
        "size": size,
        "memory-size": info.memory_size,
        "disks": disks,
        "copied": copied,
        "stopped-for-us": u64::try_from(stopped_for.as_micros()).unwrap_or(u64::MAX),
        "state": state,
    })
}

impl From<SnapshotError> for Failure {
    fn from(error: SnapshotError) -> Self {
        let code = match &error {
            SnapshotError::Busy
            | SnapshotError::Failed(
                vm::Error::Snapshot(snapshot::Error::Busy { .. }) | vm::Error::Capture(CannotCapture::Busy),
            ) => "busy",
            SnapshotError::Refused(_)
            | SnapshotError::RunOn { .. }
            | SnapshotError::Failed(
                vm::Error::Save(_)
                | vm::Error::Capture(_)
                | vm::Error::Disks(DisksError::Mode { .. } | DisksError::Replaced { .. }),
            ) => "state",
            SnapshotError::Failed(_) => "failed",
        };
        Self::new(code, error)
    }
}

fn line(value: &Value) -> Vec<u8> {
    let mut line = value.to_string().into_bytes();
    line.push(b'\n');
    line
}

/// What a machine is, in short.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Status {
    /// What it is called.
    pub name: String,
    /// The process that runs it.
    pub pid: u32,
    /// What it does: a [`State`].
    pub state: String,
    /// How many processors it has.
    pub cpus: usize,
    /// How much memory, in bytes.
    pub memory: u64,
    /// How many seconds ago it started to run.
    pub uptime: Option<f64>,
    /// The snapshot with which it began, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restored_from: Option<RestoredFrom>,
}

/// How a machine stands after a transition.
pub fn state(state: State) -> Value {
    json!({ "state": state })
}

/// How a machine ended.
pub fn ending(ending: &Ending) -> Value {
    serde_json::to_value(ending).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Call, Failure> {
        parse(text.as_bytes()).1
    }

    fn snapshot(directory: &str, diff: Option<Diff>, disks: Option<DiskMode>, stop: bool) -> Call {
        Call::Snapshot(Wanted { directory: directory.into(), diff, disks, stop })
    }

    #[test]
    fn requests_mean_what_the_protocol_says() {
        for (text, expected) in [
            (r#"{"id":1,"method":"ping"}"#, Call::Version),
            (r#"{"method":"pause","params":{}}"#, Call::Pause),
            (r#"{"method":"stop"}"#, Call::Stop { patience: PATIENCE }),
            (
                r#"{"method":"stop","params":{"timeout-ms":1500}}"#,
                Call::Stop { patience: Duration::from_millis(1500) },
            ),
            (r#"{"method":"balloon"}"#, Call::Balloon { target: None }),
            (r#"{"method":"balloon","params":{"target":4096}}"#, Call::Balloon { target: Some(4096) }),
            (r#"{"method":"logs","params":{"follow":true}}"#, Call::Logs { follow: true }),
            (r#"{"method":"logs"}"#, Call::Logs { follow: false }),
            (r#"{"method":"snapshot","params":{"directory":"/a/b"}}"#, snapshot("/a/b", None, None, false)),
            (
                r#"{"method":"snapshot","params":{"directory":"/a","stop":true}}"#,
                snapshot("/a", None, None, true),
            ),
            (
                r#"{"method":"snapshot","params":{"directory":"/a","diff":true}}"#,
                snapshot("/a", Some(Diff::Last), None, false),
            ),
            (
                r#"{"method":"snapshot","params":{"directory":"/a","diff":"/b"}}"#,
                snapshot("/a", Some(Diff::On("/b".into())), None, false),
            ),
            (
                r#"{"method":"snapshot","params":{"directory":"/a","disks":"overlay"}}"#,
                snapshot("/a", None, Some(DiskMode::Overlay), false),
            ),
        ] {
            assert_eq!(parsed(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_request_is_refused_with_the_reason() {
        for (text, code, said) in [
            ("", "parse", "no request"),
            ("pause", "parse", "no request"),
            ("[]", "parse", "no request"),
            (r#"{"id":1}"#, "parse", "method"),
            (r#"{"id":[1],"method":"ping"}"#, "parse", "an id is"),
            (r#"{"method":"ping","more":1}"#, "parse", "more"),
            (r#"{"method":"ping","params":[]}"#, "parse", "expected a map"),
            (r#"{"method":"teleport"}"#, "unknown-method", "there are version"),
            (r#"{"method":"pause","params":{"now":true}}"#, "params", "now"),
            (r#"{"method":"stop","params":{"timeout-ms":-1}}"#, "params", "the params of stop"),
            (r#"{"method":"snapshot"}"#, "params", "directory"),
            (r#"{"method":"snapshot","params":{"directory":"a/b"}}"#, "params", "an absolute path"),
            (r#"{"method":"snapshot","params":{"directory":""}}"#, "params", "an absolute path"),
            (r#"{"method":"snapshot","params":{"directory":"/a","diff":"b"}}"#, "params", "an absolute path"),
            (
                r#"{"method":"snapshot","params":{"directory":"/a","diff":1}}"#,
                "params",
                "true, false or a path",
            ),
            (r#"{"method":"balloon","params":{"target":"4M"}}"#, "params", "the params of balloon"),
        ] {
            let failure = parsed(text).unwrap_err();
            assert_eq!(failure.code, code, "{text}");
            assert!(failure.message.contains(said), "{text}: {}", failure.message);
        }
    }

    #[test]
    fn ids_come_back_as_they_were() {
        for id in [json!(7), json!("seven"), json!(-1.5), Value::Null] {
            let (read, _) = parse(json!({ "id": id, "method": "ping" }).to_string().as_bytes());
            assert_eq!(read, id);
        }
        assert_eq!(
            String::from_utf8(answer(&json!(7), Err(Failure::new("state", "no")))).unwrap(),
            "{\"error\":{\"code\":\"state\",\"message\":\"no\"},\"id\":7}\n"
        );
    }

    #[test]
    fn deeply_nested_and_huge_values_are_refused_and_nothing_else_happens() {
        for text in
            ["[".repeat(60_000), "{\"a\":".repeat(10_000), format!("{{\"method\":{}}}", "9".repeat(60_000))]
        {
            assert_eq!(parsed(&text).unwrap_err().code, "parse");
        }
    }
}
