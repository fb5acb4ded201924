//! Every maximum and every deadline.

use std::time::Duration;

use super::{
    ConfigError, DRAIN_BYTES_MAX, Limits, RESPONSE_HEAD,
    arguments::LimitArguments,
    error::invalid,
    file::File,
    open_files::OpenFiles,
    pick::{Pick, or_auto},
    values::{Number, Period, Size},
};
use crate::{connection::ClientLimits, http::HeadLimits, runtime::host, upstream::UpstreamLimits};

/// For one more request of a client that is idle when the server is about to stop: a client under load
/// sends it at once, and the others are let go before a person who waits for the stop wonders.
const DRAIN_IDLE_TIMEOUT: Duration = Duration::from_secs(1);

/// Settles the limits; `notes` are told of those that the open-file limit makes smaller.
pub(super) fn settle_limits(
    pick: &mut Pick<'_>,
    arguments: &LimitArguments,
    file: &File,
    files: &OpenFiles,
    notes: &mut Vec<String>,
) -> Result<Limits, ConfigError> {
    let head = HeadLimits {
        head_bytes_max: pick.shown("head-max", arguments.head_max, file.head_max).0,
        head_fields_max: pick
            .shown("head-fields-max", arguments.head_fields_max, file.head_fields_max)
            .0,
        target_bytes_max: pick.shown("target-max", arguments.target_max, file.target_max).0,
    };
    check_head(&head)?;
    let Size(body_max) = pick.shown("body-max", arguments.body_max, file.body_max);
    let connections =
        pick.option("connections-max", arguments.connections_max, file.connections_max, or_auto);
    let connections = connections.map(|Number(connections)| connections);
    let counter_connections = pick
        .shown(
            "counter-connections-max",
            arguments.counter_connections_max,
            file.counter_connections_max,
        )
        .0;
    let (connections_max, counter_connections_max) =
        files.share(host::open_files(), connections, counter_connections, notes)?;
    let queue_max =
        pick.shown("counter-queue-max", arguments.counter_queue_max, file.counter_queue_max).0;
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
    };
    let upstream = UpstreamLimits {
        connect_timeout: time(
            "counter-connect-timeout",
            arguments.counter_connect_timeout,
            file.counter_connect_timeout,
        ),
        call_timeout: time("counter-timeout", arguments.counter_timeout, file.counter_timeout),
        connections_max: counter_connections_max,
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
    Ok(Limits { clients, upstream, counter_clients_max, drain_timeout, files_bytes_max })
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

/// What the clients of a counter may do: most are workers, which keep connections open for as long as they like.
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
    }
}

/// What the clients of the admin listener may do: programs that ask short questions, close by. One that takes
/// longer keeps others from asking whether the server is well.
pub fn admin_client_limits(connections_max: usize) -> ClientLimits {
    ClientLimits {
        head_timeout: Duration::from_secs(2),
        body_timeout: Duration::from_secs(2),
        write_timeout: Duration::from_secs(5),
        ..internal_client_limits(connections_max)
    }
}
