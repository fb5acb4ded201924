//! The limits and time-outs: their flags, and how they are settled.

use std::time::Duration;

use clap::Args;

use super::{
    ConfigError, DRAIN_BYTES_MAX, Limits, RESPONSE_HEAD,
    error::invalid,
    file::File,
    open_files::OpenFiles,
    pick::{Pick, or},
    values::{Amount, BatchMax, HeadFields, Number, Period, PipelineMax, Positive, Size},
};
use crate::{connection::ClientLimits, http::HeadLimits, runtime::host, upstream::UpstreamLimits};

/// How long an idle client may take to send one more request when the server stops: a client under load sends
/// it at once.
const DRAIN_IDLE_TIMEOUT: Duration = Duration::from_secs(1);

/// The flags of `serve` and `check` for limits and time-outs.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Limits")]
#[allow(missing_docs)]
pub struct LimitArguments {
    /// Largest request head
    #[arg(long, env = "TALLYRING_HEAD_MAX", value_name = "SIZE", default_value = "16KiB")]
    pub head_max: Size,
    /// Most header fields in a request head
    #[arg(long, env = "TALLYRING_HEAD_FIELDS_MAX", value_name = "NUMBER", default_value = "100")]
    pub head_fields_max: HeadFields,
    /// Longest request target
    #[arg(long, env = "TALLYRING_TARGET_MAX", value_name = "SIZE", default_value = "8KiB")]
    pub target_max: Size,
    /// Largest request body; bodies are read and discarded
    #[arg(long, env = "TALLYRING_BODY_MAX", value_name = "SIZE", default_value = "64KiB")]
    pub body_max: Size,
    /// Time for a whole request head, from its first byte
    #[arg(long, env = "TALLYRING_HEAD_TIMEOUT", value_name = "TIME", default_value = "10s")]
    pub head_timeout: Period,
    /// Time for a whole request body
    #[arg(long, env = "TALLYRING_BODY_TIMEOUT", value_name = "TIME", default_value = "30s")]
    pub body_timeout: Period,
    /// Time that a connection may stay open between two requests
    #[arg(long, env = "TALLYRING_IDLE_TIMEOUT", value_name = "TIME", default_value = "75s")]
    pub idle_timeout: Period,
    /// Time for a client to take some of an answer
    #[arg(long, env = "TALLYRING_WRITE_TIMEOUT", value_name = "TIME", default_value = "30s")]
    pub write_timeout: Period,
    /// Most client connections, over all workers [default: what the open-file limit allows]
    #[arg(long, env = "TALLYRING_CONNECTIONS_MAX", value_name = "NUMBER")]
    pub connections_max: Option<Positive>,
    /// Time to connect to one address of the counter
    #[arg(
        long,
        env = "TALLYRING_COUNTER_CONNECT_TIMEOUT",
        value_name = "TIME",
        default_value = "1s"
    )]
    pub counter_connect_timeout: Period,
    /// Time for a whole call to the counter
    #[arg(long, env = "TALLYRING_COUNTER_TIMEOUT", value_name = "TIME", default_value = "5s")]
    pub counter_timeout: Period,
    /// Most connections of each worker to each counter
    #[arg(
        long,
        env = "TALLYRING_COUNTER_CONNECTIONS_MAX",
        value_name = "NUMBER",
        default_value = "1024"
    )]
    pub counter_connections_max: Positive,
    /// Most visits of each worker that wait for a connection to a counter; further ones get 503
    #[arg(
        long,
        env = "TALLYRING_COUNTER_QUEUE_MAX",
        value_name = "NUMBER",
        default_value = "4096"
    )]
    pub counter_queue_max: Amount,
    /// Most visits that one call registers, where the counter is bundled or takes a number; 1 makes a call for each
    #[arg(
        long,
        env = "TALLYRING_COUNTER_BATCH_MAX",
        value_name = "NUMBER",
        default_value = "1000"
    )]
    pub counter_batch_max: BatchMax,
    /// Most calls that a connection to a counter carries at a time, without waiting for their answers; at most 1000
    #[arg(long, env = "TALLYRING_COUNTER_PIPELINE", value_name = "NUMBER", default_value = "1")]
    pub counter_pipeline: PipelineMax,
    /// Time that an unused connection to the counter stays open
    #[arg(
        long,
        env = "TALLYRING_COUNTER_IDLE_TIMEOUT",
        value_name = "TIME",
        default_value = "30s"
    )]
    pub counter_idle_timeout: Period,
    /// Time for visits under way to end after SIGTERM or SIGINT
    #[arg(long, env = "TALLYRING_DRAIN_TIMEOUT", value_name = "TIME", default_value = "30s")]
    pub drain_timeout: Period,
    /// Most bytes of the files that routes with a directory serve from memory, all together
    #[arg(long, env = "TALLYRING_FILES_MAX", value_name = "SIZE", default_value = "64MiB")]
    pub files_max: Size,
}

/// Settles the limits. `notes` gets a line for each that the open-file limit makes smaller.
pub(super) fn settle_limits(
    pick: &mut Pick<'_>,
    arguments: &LimitArguments,
    file: &File,
    files: &OpenFiles,
    notes: &mut Vec<String>,
) -> Result<Limits, ConfigError> {
    let head = settle_head(pick, arguments, file)?;
    let Size(body_max) = pick.shown("body-max", arguments.body_max, file.body_max);
    let (connections_max, counter_connections_max) =
        settle_connections(pick, arguments, file, files, notes)?;
    let Number(queue_max) =
        pick.shown("counter-queue-max", arguments.counter_queue_max, file.counter_queue_max);
    let Number(counter_batch_max) =
        pick.shown("counter-batch-max", arguments.counter_batch_max, file.counter_batch_max);
    let Number(pipeline_max) =
        pick.shown("counter-pipeline", arguments.counter_pipeline, file.counter_pipeline);
    let mut time =
        |name, argument: Period, file: Option<Period>| pick.shown(name, argument, file).0;
    let clients = ClientLimits {
        head,
        body_bytes_max: body_max as u64,
        connections_max,
        head_timeout: time("head-timeout", arguments.head_timeout, file.head_timeout),
        body_timeout: time("body-timeout", arguments.body_timeout, file.body_timeout),
        idle_timeout: time("idle-timeout", arguments.idle_timeout, file.idle_timeout),
        write_timeout: time("write-timeout", arguments.write_timeout, file.write_timeout),
        drain_idle_timeout: DRAIN_IDLE_TIMEOUT,
        proxy_protocol: false,
    };
    let upstream = UpstreamLimits {
        connect_timeout: time(
            "counter-connect-timeout",
            arguments.counter_connect_timeout,
            file.counter_connect_timeout,
        ),
        call_timeout: time("counter-timeout", arguments.counter_timeout, file.counter_timeout),
        connections_max: counter_connections_max,
        pipeline_max,
        queue_max,
        idle_timeout: time(
            "counter-idle-timeout",
            arguments.counter_idle_timeout,
            file.counter_idle_timeout,
        ),
        head: RESPONSE_HEAD,
        drain_bytes_max: DRAIN_BYTES_MAX,
    };
    let drain_timeout = time("drain-timeout", arguments.drain_timeout, file.drain_timeout);
    let Size(files_bytes_max) = pick.shown("files-max", arguments.files_max, file.files_max);
    let counter_clients_max = files.counter_clients(host::open_files());
    Ok(Limits {
        clients,
        upstream,
        counter_batch_max,
        counter_clients_max,
        drain_timeout,
        files_bytes_max,
    })
}

fn settle_head(
    pick: &mut Pick<'_>,
    arguments: &LimitArguments,
    file: &File,
) -> Result<HeadLimits, ConfigError> {
    let Size(head_bytes_max) = pick.shown("head-max", arguments.head_max, file.head_max);
    let Number(head_fields_max) =
        pick.shown("head-fields-max", arguments.head_fields_max, file.head_fields_max);
    let Size(target_bytes_max) = pick.shown("target-max", arguments.target_max, file.target_max);
    let head = HeadLimits { head_bytes_max, head_fields_max, target_bytes_max };
    check_head(&head)?;
    Ok(head)
}

fn check_head(head: &HeadLimits) -> Result<(), ConfigError> {
    const HEAD_BYTES: std::ops::RangeInclusive<usize> = 1024..=1024 * 1024;
    let HeadLimits { head_bytes_max, target_bytes_max, .. } = *head;
    if !HEAD_BYTES.contains(&head_bytes_max) {
        return Err(invalid("head-max", "it must be a size from 1KiB to 1MiB"));
    }
    if target_bytes_max == 0 || target_bytes_max >= head_bytes_max {
        let head_max = Size(head_bytes_max);
        let problem = format!("it must be a size from 1 to below head-max, which is {head_max}");
        return Err(invalid("target-max", problem));
    }
    Ok(())
}

/// Connections of clients, over all workers, and of each worker to each counter.
fn settle_connections(
    pick: &mut Pick<'_>,
    arguments: &LimitArguments,
    file: &File,
    files: &OpenFiles,
    notes: &mut Vec<String>,
) -> Result<(usize, usize), ConfigError> {
    let clients =
        pick.option("connections-max", arguments.connections_max, file.connections_max, or("auto"));
    let clients = clients.map(|Number(clients)| clients);
    let Number(counter) = pick.shown(
        "counter-connections-max",
        arguments.counter_connections_max,
        file.counter_connections_max,
    );
    files.share(host::open_files(), clients, counter, notes)
}

/// What the clients of a counter may do. Most are workers, which keep connections open for long.
pub fn internal_client_limits(connections_max: usize) -> ClientLimits {
    ClientLimits {
        head: HeadLimits { target_bytes_max: 8 * 1024, ..RESPONSE_HEAD },
        body_bytes_max: DRAIN_BYTES_MAX,
        connections_max,
        head_timeout: Duration::from_secs(10),
        body_timeout: Duration::from_secs(30),
        idle_timeout: Duration::from_secs(300),
        write_timeout: Duration::from_secs(30),
        drain_idle_timeout: DRAIN_IDLE_TIMEOUT,
        proxy_protocol: false,
    }
}

/// What the clients of the admin listener may do. They are programs nearby that send short requests; a slow one
/// would take the place of a health check.
pub fn admin_client_limits(connections_max: usize) -> ClientLimits {
    ClientLimits {
        head_timeout: Duration::from_secs(2),
        body_timeout: Duration::from_secs(2),
        write_timeout: Duration::from_secs(5),
        ..internal_client_limits(connections_max)
    }
}
