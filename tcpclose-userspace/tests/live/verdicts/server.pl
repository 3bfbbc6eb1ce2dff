# Reads each connection to its end, and closes none: perl server.pl PORT.
use strict;
use IO::Socket::INET;
$| = 1;
my $listener = IO::Socket::INET->new(LocalAddr => "127.0.0.1", LocalPort => $ARGV[0], Listen => 512, ReuseAddr => 1) or die $!;
print "ready\n";
my @kept;
while (my $accepted = $listener->accept) {
    1 while sysread $accepted, my $data, 4096;
    push @kept, $accepted;
}
