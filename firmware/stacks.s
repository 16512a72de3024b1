# The stacks. Each is named by its end, where it starts.

.section .bss.stacks, "aw", @nobits
.balign 4096

# Where ring 0 starts at every entry from ring 3. The handlers push a few dozen words.
    .skip 4096
ring0_stack_end:

# What Rust runs on.
    .skip 65536
ring3_stack_end:

# What exceptions are reported on, so that a broken stack can be reported too.
    .skip 8192
fault_stack_end:
