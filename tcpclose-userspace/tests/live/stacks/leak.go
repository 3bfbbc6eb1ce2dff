// As leak.c, a goroutine for each connection; or, called with PORT COUNT, opens COUNT connections to PORT once a line has come.
package main

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"strconv"
)

//go:noinline
func leak_0(c net.Conn) (all int) {
	var buffer [64]byte
	for {
		got, err := c.Read(buffer[:])
		all += got
		if err != nil {
			return
		}
	}
}

//go:noinline
func leak_1(c net.Conn) (all int) {
	var buffer [64]byte
	for {
		got, err := c.Read(buffer[:])
		all += got
		if err != nil {
			return
		}
	}
}

//go:noinline
func leak_2(c net.Conn) (all int) {
	var buffer [64]byte
	for {
		got, err := c.Read(buffer[:])
		all += got
		if err != nil {
			return
		}
	}
}

//go:noinline
func leak_3(c net.Conn) (all int) {
	var buffer [64]byte
	for {
		got, err := c.Read(buffer[:])
		all += got
		if err != nil {
			return
		}
	}
}

//go:noinline
func leak_4(c net.Conn) (all int) {
	var buffer [64]byte
	for {
		got, err := c.Read(buffer[:])
		all += got
		if err != nil {
			return
		}
	}
}

//go:noinline
func open_leak_0(at string) (net.Conn, error) { return net.Dial("tcp", at) }

//go:noinline
func open_leak_1(at string) (net.Conn, error) { return net.Dial("tcp", at) }

//go:noinline
func open_leak_2(at string) (net.Conn, error) { return net.Dial("tcp", at) }

//go:noinline
func open_leak_3(at string) (net.Conn, error) { return net.Dial("tcp", at) }

//go:noinline
func open_leak_4(at string) (net.Conn, error) { return net.Dial("tcp", at) }

var held []net.Conn

func main() {
	if len(os.Args) == 3 {
		opens := []func(string) (net.Conn, error){open_leak_0, open_leak_1, open_leak_2, open_leak_3, open_leak_4}
		count, _ := strconv.Atoi(os.Args[2])
		fmt.Println(0)
		bufio.NewReader(os.Stdin).ReadString('\n')
		for nth := 0; nth < count; nth++ {
			c, err := opens[nth%5]("127.0.0.1:" + os.Args[1])
			if err != nil {
				panic(err)
			}
			held = append(held, c)
		}
		select {}
	}
	leaks := []func(net.Conn) int{leak_0, leak_1, leak_2, leak_3, leak_4}
	count, _ := strconv.Atoi(os.Args[1])
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	fmt.Println(listener.Addr().(*net.TCPAddr).Port)
	for nth := 0; nth < count; nth++ {
		c, err := listener.Accept()
		if err != nil {
			panic(err)
		}
		held = append(held, c)
		leak := leaks[nth%5]
		go func() { leak(c) }()
	}
	for {
		listener.Accept()
	}
}
