//! A connection to one member: HTTP/1.1, one call at a time, each with a deadline.

use std::{io, time::Duration};

use bytes::Bytes;
use http::{
    HeaderValue, Request, Response, StatusCode,
    header::{AUTHORIZATION, CONTENT_TYPE, DATE, HOST},
};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::{
    body::Incoming,
    client::conn::http1::{self, SendRequest},
};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    net::TcpStream,
    task,
    time::{Instant, timeout_at},
};

use super::{
    explain::{CallError, explain, explain_alarm, explain_version},
    tls,
    url::{ClusterUrl, Host},
    wire::{Authenticate, Authenticated, Empty, Status},
};

/// The largest answer that is read: twenty times that of a page of values, each as long as it can be.
const ANSWER_BYTES_MAX: usize = 32 * 1024 * 1024;

/// How long calls may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadlines {
    /// The end of all.
    pub(super) until: Instant,
    /// For one call.
    pub(super) patience: Duration,
}

impl Deadlines {
    /// The end of a call that begins now.
    fn of_call(self) -> Instant {
        self.until.min(Instant::now() + self.patience)
    }

    /// With more time for more bytes: 4 seconds for a megabyte.
    fn for_bytes(self, bytes: usize) -> Self {
        let micros = u64::try_from(bytes).unwrap_or(u64::MAX).saturating_mul(4);
        Self { patience: self.patience.saturating_add(Duration::from_micros(micros)), ..self }
    }
}

/// A connection.
pub(super) struct Session {
    /// The member's place in the URL.
    pub(super) place: usize,
    /// Of its cluster, if it tells that.
    pub(super) cluster_id: Option<u64>,
    sender: SendRequest<Full<Bytes>>,
    host: String,
    token: Option<HeaderValue>,
    pub(super) deadlines: Deadlines,
    /// The member's clock, in seconds since 1970, and when it said so.
    clock: Option<(u64, Instant)>,
    /// Why nothing can be written, where that was so at the start.
    pub(super) alarm: Option<&'static str>,
}

/// Why a member cannot be used.
#[derive(Debug)]
pub(super) struct Unusable {
    pub(super) why: String,
    /// Whether another try may help.
    pub(super) passes: bool,
    /// Whether it answered, at least that it cannot help.
    pub(super) answered: bool,
    /// Whether it did not answer in time.
    pub(super) is_silent: bool,
}

impl Unusable {
    fn passing(why: impl Into<String>) -> Self {
        Self { why: why.into(), passes: true, answered: false, is_silent: false }
    }

    pub(super) fn silent() -> Self {
        Self { is_silent: true, ..Self::passing("it does not answer") }
    }

    fn answered(why: &str) -> Self {
        Self { answered: true, ..Self::passing(why) }
    }

    pub(super) fn lasting(why: impl Into<String>) -> Self {
        Self { why: why.into(), passes: false, answered: false, is_silent: false }
    }

    fn of_call(error: CallError) -> Self {
        match error {
            CallError::NotSent(why) | CallError::Lost(why) if wants_certificate(&why) => {
                Self::lasting(with_certificate(&why))
            }
            CallError::Refused(why) | CallError::NoSpace(why) => Self::lasting(why),
            CallError::NotSent(why) | CallError::Busy(why) | CallError::Lost(why) => {
                Self::passing(why)
            }
            CallError::Compacted => Self::passing("compacted"),
        }
    }
}

impl Session {
    /// Connects to the member at a place of the URL, if it has a leader.
    pub(super) async fn open(
        cluster: &ClusterUrl,
        place: usize,
        deadlines: Deadlines,
    ) -> Result<Self, Unusable> {
        match timeout_at(deadlines.of_call(), Self::begin(cluster, place, deadlines)).await {
            Ok(opened) => opened,
            Err(_) => Err(Unusable::silent()),
        }
    }

    async fn begin(
        cluster: &ClusterUrl,
        place: usize,
        deadlines: Deadlines,
    ) -> Result<Self, Unusable> {
        let host = &cluster.hosts[place];
        let sender = connect(cluster, host).await?;
        let mut session = Self {
            place,
            cluster_id: None,
            sender,
            host: host.to_string(),
            token: None,
            deadlines,
            clock: None,
            alarm: None,
        };
        let status = session.call("/v3/maintenance/status", &Empty {}).await;
        let status: Status = status.map_err(|error| match error {
            CallError::Lost(why) if cluster.tls.is_none() && why.contains("connection closed") => {
                Unusable::passing(format!(
                    "{why}, as if it spoke TLS: then write etcds:// in place of etcd://"
                ))
            }
            other => Unusable::of_call(other),
        })?;
        explain_version(&status.version).map_err(Unusable::lasting)?;
        if status.is_learner {
            return Err(Unusable::answered("it is a learner, which answers nothing yet"));
        }
        if status.leader == 0 {
            return Err(Unusable::answered(
                "it has no leader: more than half of the members must run",
            ));
        }
        session.cluster_id = Some(status.header.cluster_id).filter(|id| *id > 0);
        session.alarm = status.errors.iter().find_map(|error| explain_alarm(error));
        Ok(session)
    }

    /// Signs in, if the URL has a user. A sign-in is a change of the whole cluster, and takes it a tenth of a second.
    pub(super) async fn sign_in(&mut self, cluster: &ClusterUrl) -> Result<(), Unusable> {
        let Some(user) = &cluster.user else { return Ok(()) };
        let ask = Authenticate { name: &user.name, password: &user.password };
        let end = self.deadlines.of_call();
        let answer = match timeout_at(end, self.call("/v3/auth/authenticate", &ask)).await {
            Ok(answer) => answer.map_err(Unusable::of_call)?,
            Err(_) => return Err(Unusable::silent()),
        };
        let Authenticated { token } = answer;
        let token = HeaderValue::from_str(&token);
        self.token = Some(token.map_err(|_| Unusable::lasting("its token cannot be sent"))?);
        Ok(())
    }

    /// Whether the member has closed the connection.
    pub(super) async fn is_closed(&self) -> bool {
        // Lets the connection notice it.
        task::yield_now().await;
        self.sender.is_closed()
    }

    /// Now, by the clock of the database, in seconds since 1970.
    pub(super) fn now(&self) -> Option<u64> {
        self.clock.map(|(seconds, said)| seconds + said.elapsed().as_secs())
    }

    /// Asks once.
    pub(super) async fn call<A: Serialize, B: DeserializeOwned>(
        &mut self,
        path: &str,
        ask: &A,
    ) -> Result<B, CallError> {
        let content = serde_json::to_vec(ask).map_err(|error| not_sent(&error))?;
        let end = self.deadlines.for_bytes(content.len()).of_call();
        match timeout_at(end, self.exchange(path, content)).await {
            Ok(answered) => answered,
            Err(_) => Err(CallError::Lost(String::from("it does not answer in time"))),
        }
    }

    async fn exchange<B: DeserializeOwned>(
        &mut self,
        path: &str,
        content: Vec<u8>,
    ) -> Result<B, CallError> {
        let mut request = Request::post(path)
            .header(HOST, &self.host)
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(content)))
            .map_err(|error| not_sent(&error))?;
        if let Some(token) = &self.token {
            request.headers_mut().insert(AUTHORIZATION, token.clone());
        }
        self.sender.ready().await.map_err(|error| not_sent(&error))?;
        let answer = match self.sender.try_send_request(request).await {
            Ok(answer) => answer,
            // It is given back if no byte of it was sent.
            Err(mut failed) => match failed.take_message() {
                Some(_) => return Err(not_sent(failed.error())),
                None => return Err(CallError::Lost(chain(failed.error()))),
            },
        };
        self.note_time(&answer);
        let status = answer.status();
        let content = collect(answer.into_body()).await?;
        if status != StatusCode::OK {
            return Err(explain(status.as_u16(), &content));
        }
        let unreadable = |error| CallError::Lost(format!("cannot read what it answers: {error}"));
        serde_json::from_slice(&content).map_err(unreadable)
    }

    fn note_time(&mut self, answer: &Response<Incoming>) {
        let date = answer.headers().get(DATE).and_then(|date| date.to_str().ok());
        let date = date.and_then(|date| httpdate::parse_http_date(date).ok());
        let since = date.and_then(|date| date.duration_since(std::time::UNIX_EPOCH).ok());
        if let Some(since) = since {
            self.clock = Some((since.as_secs(), Instant::now()));
        }
    }
}

fn not_sent(error: &dyn std::error::Error) -> CallError {
    CallError::NotSent(chain(error))
}

async fn collect(content: Incoming) -> Result<Bytes, CallError> {
    match Limited::new(content, ANSWER_BYTES_MAX).collect().await {
        Ok(content) => Ok(content.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => {
            Err(CallError::Lost(format!("it answers more than {ANSWER_BYTES_MAX} bytes")))
        }
        Err(error) => Err(CallError::Lost(chain(&*error))),
    }
}

async fn connect(cluster: &ClusterUrl, host: &Host) -> Result<SendRequest<Full<Bytes>>, Unusable> {
    let stream = TcpStream::connect((&*host.name, host.port)).await;
    let stream = stream.map_err(|error| Unusable::passing(plain(&error)))?;
    // A call is one write; what it waits for is the answer.
    let _ = stream.set_nodelay(true);
    let Some(files) = &cluster.tls else { return shake_hands(stream).await };
    let connector = tls::connector(files).map_err(Unusable::lasting)?;
    let name = ServerName::try_from(host.name.clone())
        .map_err(|error| Unusable::lasting(error.to_string()))?;
    let stream = connector.connect(name, stream).await.map_err(|error| explain_tls(&error))?;
    shake_hands(stream).await
}

async fn shake_hands(
    stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
) -> Result<SendRequest<Full<Bytes>>, Unusable> {
    let stream = TokioIo::new(stream);
    let (sender, connection) =
        http1::handshake(stream).await.map_err(|error| Unusable::passing(chain(&error)))?;
    // It ends with the sender or with the connection.
    tokio::spawn(async move { drop(connection.await) });
    Ok(sender)
}

fn explain_tls(error: &io::Error) -> Unusable {
    let why = error.to_string();
    if why.contains("InvalidContentType") {
        return Unusable::lasting("it does not speak TLS; write etcd:// in place of etcds://");
    }
    // What etcd does without TLS. A member that ends does it too, so it may pass.
    if why.contains("handshake eof") {
        return Unusable::passing(
            "it closes the connection, as if it did not speak TLS: then write etcd:// in place of etcds://",
        );
    }
    if why.contains("invalid peer certificate") {
        return Unusable::lasting(format!(
            "{why}; name it as its certificate does, and give the authority by cacert=FILE"
        ));
    }
    if wants_certificate(&why) {
        return Unusable::lasting(with_certificate(&why));
    }
    Unusable::passing(why)
}

/// Whether a member has ended TLS since it wants another certificate of this side. With TLS 1.3 it says so only after
/// the handshake.
fn wants_certificate(why: &str) -> bool {
    ["CertificateRequired", "BadCertificate"].iter().any(|alert| why.contains(alert))
}

fn with_certificate(why: &str) -> String {
    format!("{why}; give a certificate that it trusts by cert=FILE and key=FILE")
}

/// Without the number that the system gives it.
fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_owned()
}

/// An error, and what it comes from.
fn chain(error: &dyn std::error::Error) -> String {
    let mut why = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        why = format!("{why}: {inner}");
        source = inner.source();
    }
    why
}
