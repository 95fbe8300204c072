// The service in Go: net/http and redigo. Its argument says how it stores: "sadd", a command for each request,
// or "group", one command for all requests that came while the last one travelled.
package main

import (
	"log"
	"net"
	"net/http"
	"os"
	"strconv"
	"time"

	"github.com/gomodule/redigo/redis"
)

// With which ids and endpoints are kept; an endpoint may be "".
type store interface {
	add(id int64, endpoint string) error
}

var (
	ok        = []byte("ok")
	failed    = []byte("failed")
	plainText = []string{"text/plain"}
)

func main() {
	pool := &redis.Pool{
		MaxIdle: 512,
		Dial:    func() (redis.Conn, error) { return redis.Dial("unix", os.Getenv("REDIS_SOCKET")) },
	}
	var hits store
	switch os.Args[1] {
	case "sadd":
		hits = &sadd{pool}
	case "group":
		hits = newGroupCommit(pool)
	default:
		log.Fatalf("no such store: %s", os.Args[1])
	}
	listener, err := net.Listen("tcp", "127.0.0.1:"+os.Getenv("PORT"))
	if err != nil {
		log.Fatal(err)
	}
	http.HandleFunc("/api/verve/accept", func(w http.ResponseWriter, r *http.Request) { accept(hits, w, r) })
	log.Fatal(http.Serve(listener, nil))
}

func accept(hits store, w http.ResponseWriter, r *http.Request) {
	w.Header()["Content-Type"] = plainText // saves net/http the guess
	query := r.URL.Query()
	id, err := strconv.ParseInt(query.Get("id"), 10, 64)
	if err != nil {
		w.WriteHeader(http.StatusBadRequest)
		w.Write(failed)
	} else if err := hits.add(id, query.Get("endpoint")); err != nil {
		w.WriteHeader(http.StatusServiceUnavailable)
		w.Write(failed)
	} else {
		w.Write(ok)
	}
}

func minute() string {
	return strconv.FormatInt(time.Now().Unix()/60, 10)
}
