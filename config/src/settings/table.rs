//! The manual of the settings, which is also the source of their defaults.

/// What a setting means.
#[derive(Debug, Clone, Copy)]
pub struct SettingDoc {
    /// Its key in the file; the flag is `--key` if it is among [`FLAGS`], else `--set key=`; the variable is
    /// `PLANARIA_KEY`.
    pub key: &'static str,
    /// One line: what it is.
    pub title: &'static str,
    /// What becomes better and worse when it is raised, lowered or changed.
    pub consequence: &'static str,
    /// Its default as text; empty when unset or computed.
    pub default: &'static str,
    /// Whether it takes several values (an array in the file, commas in the variable).
    pub list: bool,
}

const fn one(
    key: &'static str,
    default: &'static str,
    title: &'static str,
    consequence: &'static str,
) -> SettingDoc {
    SettingDoc { key, title, consequence, default, list: false }
}

const fn list(key: &'static str, title: &'static str, consequence: &'static str) -> SettingDoc {
    SettingDoc { key, title, consequence, default: "", list: true }
}

/// The settings that have a flag of their own.
pub const FLAGS: &[&str] = &[
    "name",
    "data-dir",
    "models-dir",
    "cluster-key",
    "listen",
    "api",
    "join",
    "mdns",
    "model",
    "strategy",
    "memory-limit",
    "api-key-file",
];

/// Every setting, in the order in which `planaria config` shows them.
pub const SETTINGS: &[SettingDoc] = &[
    one(
        "name",
        "",
        "Name of this node, for people",
        "Shown in status, logs and /cluster; the machine's name unless set. Nothing but people \
         relies on it.",
    ),
    one(
        "data-dir",
        "~/.planaria",
        "Folder of this node's identity and state",
        "A node keeps its identity as long as it keeps this folder. Two nodes cannot share one.",
    ),
    one(
        "models-dir",
        "~/.planaria/models",
        "Folder of the models on this machine",
        "Each model is a folder `name` or `organisation/name` in Hugging Face or MLX layout. A \
         node without a model's files takes no part in serving that model.",
    ),
    one(
        "cluster-key",
        "",
        "File with the secret that all nodes of a cluster share",
        "Without it the node makes one at its first start, `cluster.key` in the data folder; copy \
         that file to the other machines. Nodes with different keys refuse each other.",
    ),
    one(
        "listen",
        "0.0.0.0:8421",
        "UDP address for other nodes (QUIC)",
        "Other nodes must be able to reach it. Every connection is mutually authenticated by the \
         cluster key.",
    ),
    one(
        "api",
        "127.0.0.1:8420",
        "TCP address of the HTTP API",
        "Beyond loopback it demands an API key (api-key-file).",
    ),
    list(
        "join",
        "Addresses of nodes to find the cluster by",
        "One living member is enough: the others are learnt from it. Unreachable ones are tried \
         again for ever.",
    ),
    one(
        "mdns",
        "on",
        "Whether nodes of a network find each other by themselves: `on` or `off`",
        "On, the node announces itself by mDNS to its network and looks for nodes with the same \
         cluster key. Off, nothing is sent or heard; nodes are found by join alone.",
    ),
    list(
        "model",
        "Models that the cluster is to serve",
        "When a node's settings begin to name a model, the cluster is asked to serve it, unless \
         somebody has said otherwise. After that `planaria models add` and `planaria models rm`, on \
         any node, have the last word: no restart undoes them. A name that is taken out of the \
         settings is forgotten if neither a command nor another node has asked for it; else \
         `planaria models rm` removes it. /ready waits for all models that are asked for.",
    ),
    one(
        "strategy",
        "latency",
        "How layers are dealt out to nodes",
        "`latency` finds the division with the least time per token by what nodes and links were \
         measured to do; a model that one fast node can hold stays on that node. \
         Where links are fast and nodes slow, several of them compute the same layers together. \
         `ring-memory-weighted` gives every node a contiguous range in proportion to its memory. \
         `tensor` gives all layers to all nodes, each of which computes a part of every one. \
         `planaria models add --strategy` chooses for one model; for the others the setting of the \
         node that plans holds, the living one with the lowest id. So it is for context and \
         max-sequences: give all nodes the same.",
    ),
    list(
        "pin",
        "Layers that this node is to hold, as `MODEL=FIRST-LAST`",
        "Counted from 0, `LAST` included; one range of a model. What nodes are not pinned to is dealt \
         out to the others by the strategy. Where pins cannot be followed (two overlap, memory does \
         not suffice, too few nodes are left for the rest) the model is served without, and \
         `planaria status` says why.",
    ),
    one(
        "memory-limit",
        "",
        "Most memory that this node offers (bytes, with a unit such as 8GiB)",
        "All of the machine's memory unless set. A fifth of it stays in reserve, the rest holds \
         layers and KV cache. Lower it to leave more room for other programs.",
    ),
    one(
        "threads",
        "auto",
        "Threads that each worker computes with on a processor (a number, or `auto`)",
        "`auto` is all cores that the node may use: those of its affinity, or as many whole ones as the \
         quota of its service or container comes to. Lower it to leave cores to other programs and other \
         nodes; with more threads than cores they wait for each other. What a GPU does stays as it is.",
    ),
    one(
        "kernels",
        "auto",
        "Instructions that processors multiply with (`auto`, `avx512`, `avx2`, `neon`, `plain`)",
        "`auto` is the fastest that the machine has; others are for comparing. On Linux alone: elsewhere \
         and on GPUs MLX has its own.",
    ),
    one(
        "api-key-file",
        "",
        "File with the key that API clients must send as `Authorization: Bearer`",
        "Set, every route but /health and the page at / demands it. The file's first line is the \
         key.",
    ),
    list(
        "allowed-hosts",
        "Host names by which browsers and clients may address the API",
        "The API's own address and, on loopback, `localhost` are always allowed. Others are \
         refused, so that a web page cannot reach the API by a name that resolves to it.",
    ),
    list(
        "cors-origins",
        "Web origins whose pages may call the API",
        "Only the node's own page may unless set. `https://host`, `http://host:port`, or that of an \
         application (`app://obsidian.md`, `tauri://localhost`, `chrome-extension://ID`). `*` lets every page \
         that a browser on this machine shows use the API, if it has the key or none is demanded.",
    ),
    one(
        "context",
        "8192",
        "Longest sequence, prompt and answer together (tokens)",
        "Memory for the KV cache of max-sequences such sequences is kept free on every node, so \
         raising it leaves less for layers. What running sequences leave of it holds the beginnings \
         of former ones. The model's own limit holds if it is lower.",
    ),
    one(
        "max-sequences",
        "8",
        "Sequences of a model that run at once, whichever node's clients they are for",
        "Raising it serves more clients at once, each more slowly, and keeps more memory for KV \
         caches.",
    ),
    list(
        "tool-parser",
        "How models write calls of tools, as `FORMAT` or `MODEL=FORMAT`",
        "Found out from a model's chat template and tokens unless set; `none` has calls shown as text. \
         docs/models.md lists the formats.",
    ),
    list(
        "reasoning-parser",
        "How models mark what they think, as `FORMAT` or `MODEL=FORMAT`",
        "Found out from a model's chat template and tokens unless set; `none` has thoughts shown as text. \
         docs/models.md lists the formats.",
    ),
    list(
        "kv-bits",
        "Bits of the numbers in KV caches, as `BITS` or `MODEL=BITS` (`8`, `4`, `none`)",
        "Numbers are as the model has them unless set. Packed, as many tokens take about half of the memory or a \
         third of it, for answers that differ a little. Nodes with another value have another model: set it alike everywhere.",
    ),
    one(
        "plan-streams",
        "1",
        "Answers at once that the strategy `latency` plans for",
        "With one, an answer comes as fast as it can. With more, layers are spread so that no node \
         holds up the others while so many answers run, each of which may be slower.",
    ),
    one(
        "replan-after",
        "30s",
        "How long a better division must stay better before it is adopted",
        "Better means a time per token that is at least 15 % shorter. Lower, a cluster uses a new \
         node sooner; higher, it does not follow every change. After a loss it plans at once.",
    ),
    one(
        "standby",
        "off",
        "Whether layers for the loss of another node are loaded beforehand (`on`, `off`)",
        "On, what this node would hold without any one of the others is loaded into memory that is \
         free, as far as it goes: after a loss nothing has to be loaded first.",
    ),
    one(
        "max-queued",
        "32",
        "Requests that wait at this node for a free place before its clients get 429",
        "Raising it makes clients wait rather than retry. Those who come first are passed on to the model's first \
         node, where nodes take turns; with 0 nobody waits there either.",
    ),
    one(
        "prefill-chunk",
        "256",
        "Tokens of a prompt that pass through the pipeline at once",
        "Larger chunks compute more efficiently; smaller ones keep several stages busy with one \
         prompt. While answers are running, steps take smaller pieces by themselves.",
    ),
    one(
        "boundary-logs",
        "256MiB",
        "Memory for what this node's layers have handed on, by model (with a unit such as 1GiB; 0 for \
         none)",
        "When the node behind this one dies, only its layers are computed again, from what was kept \
         here: a row of the model's hidden size for each token of each running answer. What does not \
         fit is computed again by all layers.",
    ),
    one(
        "stored-answers",
        "64MiB",
        "Disk space for answers whose clients asked for them to be stored (with a unit such as 1GiB; \
         0 for none)",
        "A chat completion or a response that was asked for with `store: true` can be read again, and \
         goes on by itself when this node was killed and is back. Past this the oldest ones are forgotten.",
    ),
    one(
        "step-timeout",
        "30s",
        "Longest wait for the next token of a sequence",
        "Past it the request ends with an error. Too low and slow machines fail in long prompts; \
         too high and clients wait for a stuck node.",
    ),
    one(
        "load-timeout",
        "10m",
        "Longest time for a node to load its layers",
        "Past it the node is left out of that plan. Large models on slow disks need more.",
    ),
    one(
        "drain-timeout",
        "60s",
        "Longest time that a node which was asked to stop stays for answers and for others",
        "It takes no new requests, and stops as soon as the answers of its own clients have ended, others \
         hold its layers, and no answer passes through it. Past this time it stops all the same: its clients \
         get an error, and answers of others that pass through it go on elsewhere, or fail.",
    ),
    one(
        "traces",
        "",
        "Where traces are sent to: a collector that speaks OTLP, such as Jaeger, as `http://HOST:PORT`",
        "Unset, nothing is traced. A collector that is slow or gone costs traces, never answers. Headers for \
         it are taken from `OTEL_EXPORTER_OTLP_HEADERS`.",
    ),
    one(
        "trace-protocol",
        "grpc",
        "How traces are sent: `grpc` (mostly to port 4317) or `http` (mostly to port 4318)",
        "Whichever the collector speaks at that port.",
    ),
    one(
        "trace-ratio",
        "1",
        "The part of requests that is traced, from 0 to 1",
        "A traced request leaves a few spans for every token on every stage. One that comes with a \
         `traceparent` is traced if that says so, and not otherwise.",
    ),
    one(
        "log",
        "info",
        "What is logged, as tracing directives",
        "`debug`, or by part: `info,planaria_transport=debug`. Prompts and answers are never logged.",
    ),
    one(
        "log-format",
        "auto",
        "`text`, `json`, or `auto`: text on a terminal, JSON otherwise",
        "Only the look changes.",
    ),
];
