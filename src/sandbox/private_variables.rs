//! Private environment variables: secrets and roles of ocifs processes that programs started by them must not inherit.

/// `USER:PASSWORD` for registries.
pub const CREDENTIALS_VARIABLE: &str = "OCIFS_CREDS";
/// Set for a process that has the password as its standard input.
pub const STDIN_CREDENTIALS_VARIABLE: &str = "OCIFS_CREDS_STDIN";
/// Set for the monitor.
pub const MONITOR_VARIABLE: &str = "OCIFS_MONITOR";
/// Set for the monitor of a temporary mount: at its end it removes the directory and the parent directory.
pub const TEMPORARY_VARIABLE: &str = "OCIFS_TEMPORARY";
/// Set in the background process, to the PID of the process that started it.
pub const BACKGROUND_VARIABLE: &str = "OCIFS_BACKGROUND";
/// PID of the process that this one ends with, at the latest until it has mounted.
pub const OWNER_VARIABLE: &str = "OCIFS_OWNER";
/// Socket for the readiness of a service.
pub const NOTIFY_SOCKET: &str = "NOTIFY_SOCKET";

/// Secrets, and roles of an ocifs process: the program may call ocifs itself.
pub const PRIVATE_VARIABLES: [&str; 6] = [
    CREDENTIALS_VARIABLE,
    STDIN_CREDENTIALS_VARIABLE,
    MONITOR_VARIABLE,
    TEMPORARY_VARIABLE,
    BACKGROUND_VARIABLE,
    OWNER_VARIABLE,
];

/// Variables of a service manager, for one process alone.
pub const SERVICE_VARIABLES: [&str; 5] =
    [NOTIFY_SOCKET, "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PID", "WATCHDOG_USEC"];
