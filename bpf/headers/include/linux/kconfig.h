/* bcc's prologue asks whether the kernel has bpf(2); the loader finds out by trying. */
#define CONFIG_BPF_SYSCALL 1
