/** For development: in production the web server hands /scq/ on, and this never sees it. */
export default {
  async rewrites() {
    return [{ source: "/scq/:path*", destination: "http://127.0.0.1:8000/scq/:path*" }];
  },
};
