//! Why visits are not registered and requests are refused, as the metrics name it.

/// Why a visit was not registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// Nobody listens at the counter's address.
    Refused,
    /// No connection was established in time.
    ConnectTimedOut,
    /// The counter's name has no address.
    NoAddress,
    /// No connection could be opened, for another reason.
    NoConnection,
    /// The call took too long.
    TimedOut,
    /// The connection ended before the answer, or what was received is no HTTP response.
    Broken,
    /// The answer had this status, which does not say that the visit was counted.
    Status(u16),
    /// It was not tried: the calls before it have all failed.
    NotTried,
}

impl Failure {
    /// The labels of the metric, in the order of [`place`](Self::place).
    pub const LABELS: [&str; 10] = [
        "refused",
        "connect_timeout",
        "no_address",
        "no_connection",
        "timeout",
        "broken",
        "status_4xx",
        "status_5xx",
        "status_other",
        "not_tried",
    ];

    /// The place of its label.
    pub const fn place(self) -> usize {
        match self {
            Self::Refused => 0,
            Self::ConnectTimedOut => 1,
            Self::NoAddress => 2,
            Self::NoConnection => 3,
            Self::TimedOut => 4,
            Self::Broken => 5,
            Self::Status(400..=499) => 6,
            Self::Status(500..=599) => 7,
            Self::Status(_) => 8,
            Self::NotTried => 9,
        }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Refused => f.write_str("connection refused"),
            Self::ConnectTimedOut => f.write_str("connecting timed out"),
            Self::NoAddress => f.write_str("its name has no address"),
            Self::NoConnection => f.write_str("no connection could be opened"),
            Self::TimedOut => f.write_str("timed out"),
            Self::Broken => f.write_str("the connection broke, or the answer was no HTTP response"),
            Self::Status(status) => write!(f, "answer {status}"),
            Self::NotTried => f.write_str("not tried, after many failures"),
        }
    }
}

/// Why a request was refused, by the status of its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadRequest {
    /// It breaks the rules of HTTP.
    Malformed,
    /// Its head, its target or its body is larger than the limit.
    TooLarge,
    /// It did not arrive in time.
    TooSlow,
    /// It asks for what is not supported here.
    Unsupported,
    /// Its connection did not begin with a valid PROXY header, and was closed.
    ProxyHeader,
}

impl BadRequest {
    /// The labels of the metric, in the order of the variants.
    pub const LABELS: [&str; 5] =
        ["malformed", "too_large", "too_slow", "unsupported", "proxy_header"];

    /// The reason that a status stands for.
    pub const fn of_status(status: u16) -> Self {
        match status {
            408 => Self::TooSlow,
            413 | 414 | 431 => Self::TooLarge,
            417 | 501 | 505 => Self::Unsupported,
            _ => Self::Malformed,
        }
    }
}
