//! Finds the nodes of a graph that ONNX Runtime runs on the CPU although the network is on a GPU.
//!
//! ONNX Runtime gives a node for which a GPU has no kernel to the CPU, copies what it reads and
//! makes, and says little of it: the numbers are right, and the GPU waits for the CPU in the middle
//! of each pass. Which provider ran a node is in the profile of a run, so the first pass of a
//! session is profiled.

use serde::Deserialize;

use super::device::Provider;

/// An entry of a profile, as far as it is read.
#[derive(Deserialize)]
struct Event {
    #[serde(default)]
    cat: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    args: Args,
}

#[derive(Default, Deserialize)]
struct Args {
    #[serde(default)]
    op_name: String,
    #[serde(default)]
    provider: String,
    /// An object for each output, from the name of its type to its shape.
    #[serde(default)]
    output_type_shape: Vec<serde_json::Map<String, serde_json::Value>>,
}

/// The end of the name of an entry that is a node's own time.
const KERNEL: &str = "_kernel_time";

/// Returns the nodes of a profiled run, in the order in which they ran, that the CPU ran or that
/// copy to it or from it, as `operator name`. Those that only reckon with shapes, in integers, are
/// left out: ONNX Runtime puts them on the CPU on purpose, for that is where shapes are needed.
///
/// # Errors
///
/// When the text is no profile.
pub fn on_cpu(profile: &str) -> serde_json::Result<Vec<String>> {
    let events: Vec<Event> = serde_json::from_str(profile)?;
    let mut nodes = Vec::new();
    for Event { name, args, .. } in events.into_iter().filter(|event| event.cat == "Node") {
        let Some(name) = name.strip_suffix(KERNEL) else { continue };
        let is_elsewhere =
            args.provider == Provider::Cpu.as_label() || args.op_name.starts_with("Memcpy");
        let mut types = args.output_type_shape.iter().flat_map(|output| output.keys());
        let is_of_shapes = types.all(|dtype| ["int64", "int32"].contains(&dtype.as_str()));
        if is_elsewhere && !is_of_shapes {
            nodes.push(format!("{} {name}", args.op_name));
        }
    }
    Ok(nodes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(operator: &str, name: &str, provider: &str, dtype: &str) -> serde_json::Value {
        serde_json::json!({
            "cat": "Node", "pid": 1, "tid": 1, "dur": 5, "ts": 9, "ph": "X",
            "name": format!("{name}_kernel_time"),
            "args": {
                "op_name": operator, "provider": provider, "node_index": "3",
                "output_type_shape": [{ dtype: [1, 2] }],
            },
        })
    }

    #[test]
    fn nodes_on_the_cpu_and_copies_are_found_and_shapes_are_not() {
        let profile = serde_json::json!([
            { "cat": "Session", "name": "model_loading", "args": {}, "dur": 1 },
            { "cat": "Node", "name": "a_fence_before", "args": { "op_name": "Gemm" } },
            node("Gemm", "up", "CUDAExecutionProvider", "float16"),
            node("Shape", "pool.shape", "CPUExecutionProvider", "int64"),
            node("MemcpyFromHost", "range", "CUDAExecutionProvider", "int64"),
            node("MemcpyToHost", "down", "CUDAExecutionProvider", "float16"),
            node("Gelu", "gelu", "CPUExecutionProvider", "float"),
            node("Equal", "mask", "CPUExecutionProvider", "bool"),
        ]);
        let found = on_cpu(&profile.to_string()).unwrap();
        assert_eq!(found, ["MemcpyToHost down", "Gelu gelu", "Equal mask"]);
        assert!(on_cpu("{}").is_err());
    }
}
