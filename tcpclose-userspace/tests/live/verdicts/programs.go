// Programs that leave connections open, or do not: programs WAY PORT. They end when their standard input does.
package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"time"
)

var kept []any

func main() {
	go func() {
		io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	address := "127.0.0.1:" + os.Args[2]
	switch os.Args[1] {
	case "leaking_server":
		listener := listen(address)
		for {
			connection, _ := listener.Accept()
			kept = append(kept, connection)
			go io.Copy(io.Discard, connection)
		}
	case "hijacking_server":
		// The handler takes the connection over, reads it to its end, and forgets it.
		var lock sync.Mutex
		http.Serve(listen(address), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			connection, buffer, _ := w.(http.Hijacker).Hijack()
			lock.Lock()
			kept = append(kept, connection)
			lock.Unlock()
			io.Copy(io.Discard, buffer)
		}))
	case "server":
		http.Serve(listen(address), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "ok") }))
	case "leaking_client":
		fmt.Println("ready")
		for {
			connection, err := net.Dial("tcp", address)
			if err == nil {
				fmt.Fprint(connection, "GET / HTTP/1.1\r\nHost: test\r\n\r\n")
				response, err := http.ReadResponse(bufio.NewReader(connection), nil)
				if err == nil {
					io.Copy(io.Discard, response.Body)
				}
				kept = append(kept, connection)
			}
			time.Sleep(400 * time.Millisecond)
		}
	case "pool":
		client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 5}}
		use := func() {
			if response, err := client.Get("http://" + address); err == nil {
				io.Copy(io.Discard, response.Body)
				response.Body.Close()
			}
		}
		var all sync.WaitGroup
		for range [5]int{} {
			all.Add(1)
			go func() { use(); all.Done() }()
		}
		all.Wait()
		fmt.Println("ready")
		for {
			time.Sleep(4 * time.Second)
			use()
		}
	}
}

func listen(address string) net.Listener {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		panic(err)
	}
	fmt.Println("ready")
	return listener
}
