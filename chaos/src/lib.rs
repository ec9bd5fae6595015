//! Breaks a real cluster from outside: processes, signals, network namespaces.
//!
//! Empty so far: the schedule of faults, the checker of histories and the report come with
//! recovery itself. Its place in the workspace, above nothing but `config`, is already enforced.
