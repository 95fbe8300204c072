import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse.BodyHandlers;
import java.time.Duration;
import java.util.Arrays;
import java.util.concurrent.atomic.AtomicLong;
import java.util.concurrent.locks.LockSupport;

/**
 * Load from Java's own HTTP client at one rate, so that clients of different cost make batches of the same size: each
 * thread sends its next request when it is due and it has its answer.
 *
 * <p>Arguments: port, connections, seconds, first id, requests a second, and the version that the client is told to
 * speak. HTTP_2 is its default; over plain TCP it then offers h2c with "Connection: Upgrade, HTTP2-Settings".
 */
public class Load {
  private static final int MOST = 1 << 20;
  private static final AtomicLong refused = new AtomicLong(), broken = new AtomicLong(), answered = new AtomicLong();
  private static final long[] tookNs = new long[MOST];

  public static void main(String[] args) throws InterruptedException {
    String address = "http://127.0.0.1:" + args[0] + "/api/verve/accept?id=";
    AtomicLong ids = new AtomicLong(Long.parseLong(args[3]));
    HttpClient client = HttpClient.newBuilder().version(HttpClient.Version.valueOf(args[5])).build();
    long beganNs = System.nanoTime(), endNs = beganNs + Long.parseLong(args[2]) * 1_000_000_000L;
    Thread[] threads = new Thread[Integer.parseInt(args[1])];
    long everyNs = threads.length * 1_000_000_000L / Long.parseLong(args[4]);
    for (int number = 0; number < threads.length; number++) {
      long firstNs = beganNs + number * everyNs / threads.length;
      threads[number] = new Thread(() -> {
        for (long dueNs = firstNs; dueNs < endNs; dueNs += everyNs) {
          LockSupport.parkNanos(dueNs - System.nanoTime());
          ask(client, address, ids.incrementAndGet());
        }
      });
      threads[number].start();
    }
    for (Thread thread : threads) {
      thread.join();
    }
    double seconds = (System.nanoTime() - beganNs) / 1e9;
    int count = (int) Math.min(answered.get(), MOST);
    Arrays.sort(tookNs, 0, count);
    System.out.printf(
        "{\"requests\": %d, \"refused\": %d, \"broken\": %d, \"seconds\": %f, "
            + "\"p50_ms\": %f, \"p99_ms\": %f, \"p999_ms\": %f, \"max_ms\": %f}%n",
        answered.get(), refused.get(), broken.get(), seconds,
        ms(count, 0.5), ms(count, 0.99), ms(count, 0.999), ms(count, 1));
    System.exit(0); // the client's own threads need not be waited for
  }

  private static void ask(HttpClient client, String address, long id) {
    HttpRequest request = HttpRequest.newBuilder(URI.create(address + id))
        .timeout(Duration.ofSeconds(2))
        .header("X-Request-Id", "5b0c1f6e2a7d4938c1e0d7a" + id)
        .build();
    long beganNs = System.nanoTime();
    try {
      int status = client.send(request, BodyHandlers.discarding()).statusCode();
      tookNs[(int) answered.getAndIncrement() % MOST] = System.nanoTime() - beganNs;
      if (status != 200) {
        refused.incrementAndGet();
      }
    } catch (Exception error) {
      broken.incrementAndGet();
    }
  }

  private static double ms(int count, double share) {
    return count == 0 ? 0 : tookNs[(int) Math.ceil(share * count) - 1] / 1e6;
  }
}
