#!/bin/sh
# devices.sh none|one|pair: Soft-RoCE devices of the guest.
#   one   rxe0 on a dummy interface, 10.77.0.1; its traffic stays inside the driver
#   pair  rxe0 and rxe1 on the two ends ve0, ve1 of a cable (a veth pair), 10.77.0.1 and 10.77.0.2: traffic between
#         them really crosses it, so that a link that goes down, loss, delay and reordering by netem act on it
# GID index 1 of each is its IPv4 address, RoCE v2.
set -e

add() { # DEVICE INTERFACE; returns once its IPv4 GID is there, which takes a moment
    rdma link add "$1" type rxe netdev "$2"
    tries=0
    while grep -q ':0000:0000:0000$' "/sys/class/infiniband/$1/ports/1/gids/1"; do
        tries=$((tries + 1))
        [ $tries -lt 600 ] || { echo "devices.sh: $1 got no GID" >&2; exit 1; }
        sleep 0.1
    done
}

case $1 in
none) ;;
one)
    ip addr add 10.77.0.1/24 dev dummy0
    ip link set dummy0 mtu 4200 up # an RDMA MTU of 4096 needs more than that
    add rxe0 dummy0 ;;
pair)
    ip link add ve0 mtu 4200 type veth peer name ve1 mtu 4200
    ip addr add 10.77.0.1/24 dev ve0
    ip addr add 10.77.0.2/24 dev ve1
    # Both addresses are this machine's own, so the kernel would go over lo, where rxe does not listen. rxe names the
    # interface when it looks up a route, so rules by interface send its packets over the cable.
    for interface in all ve0 ve1; do
        echo 1 >/proc/sys/net/ipv4/conf/$interface/accept_local
        echo 0 >/proc/sys/net/ipv4/conf/$interface/rp_filter
    done
    ip rule add pref 1 iif ve0 lookup local
    ip rule add pref 2 iif ve1 lookup local
    ip rule add pref 3 oif ve0 lookup 100
    ip rule add pref 4 oif ve1 lookup 101
    ip rule add pref 5 lookup local
    ip rule del pref 0
    ip link set ve0 up
    ip link set ve1 up
    ip route add 10.77.0.0/24 dev ve0 table 100
    ip route add 10.77.0.0/24 dev ve1 table 101
    # A device reaches itself inside the driver, when the address is known to be its own interface's.
    ip neigh add 10.77.0.1 lladdr "$(cat /sys/class/net/ve0/address)" dev ve0 nud permanent
    ip neigh add 10.77.0.2 lladdr "$(cat /sys/class/net/ve1/address)" dev ve1 nud permanent
    add rxe0 ve0
    add rxe1 ve1 ;;
*) sed -n '2,6s/^# //p' "$0" >&2; exit 2 ;;
esac
