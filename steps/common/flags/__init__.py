"""The flags of `vllm serve`, for every step that starts one."""
