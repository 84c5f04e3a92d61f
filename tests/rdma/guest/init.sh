#!/bin/busybox sh
# First process of the guest, from its initramfs: mounts the host's / read-only with an overlay in memory above it,
# runs /control/command in it, writes its status to /control/status and powers the machine off.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
/bin/busybox mkdir -p /proc /sys /dev /control /host /above /root /bin /sbin /usr/bin /usr/sbin /tmp
/bin/busybox --install -s

say() { echo "[guest $(cut -d' ' -f1 /proc/uptime)] $*" >/dev/console; }
die() { say "FAILED: $*"; sync; poweroff -f; }

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev 2>/dev/null # the kernel may have mounted it already
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
ln -sf /proc/self/fd /dev/fd
for pair in 0:stdin 1:stdout 2:stderr; do ln -sf "/proc/self/fd/${pair%%:*}" "/dev/${pair#*:}"; done

for module in virtio_pci virtio_console 9pnet_virtio 9p overlay; do modprobe $module || die "modprobe $module"; done
options=trans=virtio,version=9p2000.L,msize=524288,access=client
mount -t 9p -o $options control /control || die "mount control"
mount -t 9p -o "ro,cache=loose,$options" host /host || die "mount host"
mount -t tmpfs -o size=75% tmpfs /above
mkdir /above/upper /above/work /above/temporary
mount -t overlay -o lowerdir=/host,upperdir=/above/upper,workdir=/above/work overlay /root || die "mount overlay"
for dir in proc sys dev control run laboratory; do mkdir -p /root/$dir; done
for dir in proc sys dev control; do mount --rbind /$dir /root/$dir; done
mount -t tmpfs tmpfs /root/run
mkdir -p "/root/lib/modules/$(uname -r)"
mount --bind "/lib/modules/$(uname -r)" "/root/lib/modules/$(uname -r)"
# Temporary files live on tmpfs itself: an overlay in between knows neither O_TMPFILE nor renames of directories.
mount --bind /above/temporary /root/laboratory
chmod 1777 /root/laboratory

hostname laboratory
ip link set lo up
for module in ib_uverbs rdma_ucm rdma_rxe veth dummy fuse sch_netem; do modprobe $module || die "modprobe $module"; done
say ready

# The virtio port "output" carries what the command prints, byte for byte.
output=/dev/console
for port in /sys/class/virtio-ports/*; do
    [ "$(cat "$port/name" 2>/dev/null)" = output ] && output=/dev/${port##*/}
done
# A pipe, so that the command may open /dev/stdout and /dev/stderr again.
{ chroot /root /usr/bin/env -i /bin/bash /control/command </dev/null 2>&1; echo $? >/control/status; } | cat >"$output"
say "ended with $(cat /control/status)"
sync
poweroff -f
