//! The worker's tests from outside: the real program, on a real Apache Kafka, and the library's
//! stages on librdkafka's mock cluster. One binary, so that one Kafka serves all of it.

mod support;

mod acknowledged;
mod bench;
mod brokers;
mod cli;
mod compare;
mod cut;
mod dashboard;
mod deleted;
mod device;
mod dlq;
mod embed;
mod exactly_once;
mod fake_gpu;
mod flow;
mod group;
mod image;
mod import;
mod in_process;
mod observe;
mod page;
mod parity;
mod precision;
mod promises;
mod protocols;
mod queries;
mod recreated;
mod rejection;
mod security;
mod signals;
