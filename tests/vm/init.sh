#!/bin/busybox sh
# The first process of the test machine: mounts the host's root, read-only under an overlay in
# memory, and becomes the agent in it. Words on the kernel's command line: vm.cgroups=1|2,
# vm.agent=PATH of agent.py, vm.python=PATH of its interpreter, vm.modules=ROOT of the kernel's
# modules, vm.project=ROOT of this project.
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
$b mount -t devtmpfs dev /dev
for word in $($b cat /proc/cmdline); do
  case "$word" in vm.*=*) eval "$(echo "$word" | $b tr -d "'\"\`;" | $b sed 's/^vm\.\([a-z]*\)=\(.*\)$/\1="\2"/')" ;; esac
done
for module in /modules/*.ko; do
  $b insmod "$module" || echo "init: insmod $module failed"
done
$b mount -t tmpfs -o size=75% top /top
$b mkdir /top/upper /top/work
n=0
until $b mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=512000,cache=loose host /host; do
  n=$((n + 1)); [ $n -gt 50 ] && { echo "init: no host root"; $b poweroff -f; }
  $b sleep 0.1
done
$b mount -t overlay -o lowerdir=/host,upperdir=/top/upper,workdir=/top/work,xino=off root /root
cd /root
$b mount -t proc proc proc
$b mount -t sysfs sys sys
$b mount -t devtmpfs dev dev
$b mkdir -p dev/shm dev/pts
$b mount -t devpts -o mode=620,ptmxmode=666 devpts dev/pts
for place in dev/shm tmp run var/tmp mnt; do $b mount -t tmpfs tmpfs $place; $b chmod 1777 $place; done
# Bring the project back if it lies in one of those.
if [ ! -e ".$project" ]; then
  $b mkdir -p ".$project"
  $b mount --bind "/host$project" ".$project"
fi
# The kernel loads on its own the modules that a mount needs.
$b mkdir -p usr/lib/modules
$b mount --bind ".$modules/lib/modules" usr/lib/modules
if [ "$cgroups" = 1 ]; then
  $b mount -t tmpfs tmpfs sys/fs/cgroup
  $b mkdir sys/fs/cgroup/memory sys/fs/cgroup/unified
  $b mount -t cgroup -o memory memory sys/fs/cgroup/memory
  $b mount -t cgroup2 cgroup2 sys/fs/cgroup/unified
else
  $b mount -t cgroup2 cgroup2 sys/fs/cgroup
  echo +memory > sys/fs/cgroup/cgroup.subtree_control
fi
echo 1 > proc/sys/net/ipv4/ip_forward
$b ifconfig lo 127.0.0.1 up
$b hostname machine
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/usr/lib/openssh HOME=/tmp LC_ALL=C.UTF-8
exec $b chroot . "$python" -I "$agent"
